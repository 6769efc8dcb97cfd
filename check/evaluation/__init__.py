"""How well a bundle answers its queries when its models must share a memory that is too small for them.

``evaluate`` runs, ``reference`` says what is right, ``answers`` says which answer counts for which frame, ``scores``
and ``precision`` compare the two, ``report`` shows what came of it. Needs the extra ``eval``.
"""
