"""Journal of a search on disk, with the weights, the report and the merged workload that belong to each trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from ...bundles.merge_report import FormsReport, MergeReport
from ...workload.document.paths import locate
from ...workload.document.schema import Workload
from ...workload.models.factory import read_state
from ...workload.models.identity import models_of
from ..forms.form_map import FormMap
from ..forms.quantize import Base, Coded
from ..layers.sharing import Use
from ..models.networks import Network
from ..models.onnx_models import cut_onnx, onnx_bytes
from ..search.search import Found
from ..strategies import Verdict
from ..training.subjects import State, Subject
from ..training.trial import Outcome, Trial
from .forms_file import forms_file, read_codes
from .records import Confirmed
from .remembered import Remembered
from .report import Reporter, merged_workload
from .store import Store

__all__ = ["DiskJournal", "read_weights", "weight_file"]


def weight_file(network: Network, state: State, root: Path) -> tuple[bytes, str]:
    """Return content and suffix of a model's weight file: safetensors, or onnx for a model from an ONNX file.

    Args:
        network: the model.
        state: new weights of the model.
        root: folder that the workload's paths are relative to.
    """
    query = network.queries[0]
    if query.model.onnx is None:
        return save(state), "safetensors"
    source = locate(query.model.onnx, root, f"query {query.name}: onnx")
    return onnx_bytes(source, state, query.model.input), "onnx"


def read_weights(network: Network, path: Path) -> State:
    """Read a model's weights from a weight file with the content that :func:`weight_file` makes.

    Raises:
        ModelError: the file cannot be read as weights.
    """
    query = network.queries[0]
    if query.model.onnx is None:
        return read_state(path)
    model = query.model.model_copy(update={"onnx": str(path.absolute())})
    query = query.model_copy(update={"model": model})
    state = Network(network.name, (query,), cut_onnx(query, path.parent)).module.state_dict()
    return {key: value.clone() for key, value in state.items()}


class DiskJournal:
    """Search :class:`.Journal` on disk that also writes the report and a usable workload after each trial.

    Args:
        workload: the workload whose models are merged.
        store: folder of the merge.
        subjects: the models, by name.
        reporter: maker of the report.
        settled: function called after each trial with the verdict, the report and the state of the search.
    """

    def __init__(
        self,
        workload: Workload,
        store: Store,
        subjects: Mapping[str, Subject],
        reporter: Reporter,
        settled: Callable[[Verdict, MergeReport, Found], None],
    ) -> None:
        self._workload, self._store, self._subjects = workload, store, subjects
        self._reporter, self._settled = reporter, settled
        self._replayed = store.replaying
        self._files: dict[str, tuple[State, str]] = {}
        self._stepped_back: dict[str, tuple[State, str]] = {}
        """Files of models that are written with other weights than those that the search found."""
        self._kept_files: tuple[str, ...] = ()
        """Files of the weights and codes of what a merge may go back to."""
        self._codes: dict[Use, Coded] = {}
        self._forms: tuple[FormMap, FormsReport | None] = FormMap(), None
        self._written_forms = Remembered[FormsReport | None]()
        self._bases: dict[str, Base] = {}
        for subject in subjects.values():
            self._bases |= subject.bases

    def recall(self, trial: Trial) -> Outcome | None:
        """Return the recorded outcome of a trial, or None if the trial has not run yet."""
        return self._store.recall(trial)

    def restore(self, found: Found) -> tuple[dict[str, State], dict[str, State]] | None:
        """Return, once all trials of an interrupted search are recalled, its committed and last trained weights."""
        if not self._replayed:
            return None
        self._replayed = False
        files, forms = self._store.after(len(found.verdicts))
        if forms is not None:
            self._codes, _ = read_codes(self._store.output / forms.file, forms.layers)
        read = {name: read_weights(self._subjects[name].network, files[name]) for name in found.models}
        self._restore_kept(found, {files[name]: state for name, state in read.items()})
        # The earlier run may have ended before the last state was confirmed.
        self.commit(replace(found, states={**found.states, **read}), finished=False)
        return read, self._store.last_states()

    def _restore_kept(self, found: Found, read: Mapping[Path, State]) -> None:
        """Load what a merge may go back to.

        Args:
            found: state of the search.
            read: weight file -> weights, of files that are read already: mostly, it is the last state.
        """
        trial, failed = self._store.confirmed
        if not trial:
            self._reporter.confirmer.go_on(Found({}), frozenset(failed))
            return
        verdict = found.verdicts[trial - 1]
        files, forms = self._store.after(trial)
        codes = {} if forms is None else read_codes(self._store.output / forms.file, forms.layers)[0]
        states = {
            name: read.get(path) or read_weights(self._subjects[name].network, path) for name, path in files.items()
        }
        kept = Found(states, verdict.sharing, verdicts=found.verdicts[:trial], forms=verdict.forms, codes=codes)
        self._reporter.confirmer.go_on(kept, frozenset(failed))
        self._kept_files = (*(path.name for path in files.values()), *([] if forms is None else [forms.file]))

    def record(self, verdict: Verdict, found: Found, last: Mapping[str, State]) -> None:
        """Write the verdict on a trial, the report and the workload to disk, then call ``settled``."""
        files = self._contents({name: found.states[name] for name in found.models}, self._files)
        self._store.record(verdict, last, files, self._place_forms(found))
        self._settled(verdict, self.commit(found, finished=False), found)

    def commit(self, found: Found, *, finished: bool) -> MergeReport:
        """Write the merged weights, the report and the workload to disk and return the report."""
        searched = self._place_forms(found)
        found = replace(found, codes={**self._codes, **found.codes})
        written = self._reporter.confirmed(found)
        as_found = all(written.states[name] is found.states[name] for name in written.models)
        as_found = as_found and written.forms == found.forms
        forms = self._written_forms.of(written, lambda: searched if as_found else self._place(written))
        report = self._reporter.report(found, finished=finished, codes=self._codes, forms=forms)
        files = self._contents({name: found.states[name] for name in found.models}, self._files)
        others = {name: written.states[name] for name in written.models}
        stepped_back = {name: state for name, state in others.items() if state is not found.states[name]}
        other_files = self._contents(stepped_back, self._stepped_back)
        names = {name: f"weights/{file}" for name, (file, _) in {**files, **other_files}.items() if name in others}
        workload = merged_workload(self._workload, names, models_of(self._workload), self._store.output)
        # What the search goes on from and what a merge may go back to stay, too.
        kept = () if searched is None else (searched.file,)
        confirmed = self._confirmed(found, (*dict(files.values()), *kept))
        kept_files = dict.fromkeys((*kept, *self._kept_files))
        self._store.commit(
            {**kept_files, **dict(files.values()), **dict(other_files.values())}, report, workload, confirmed
        )
        return report

    def _confirmed(self, found: Found, files: tuple[str, ...]) -> Confirmed:
        """Return after which trial a merge may go back to what was confirmed; note the files that this takes.

        Args:
            found: state of the search.
            files: its files of weights and codes.
        """
        confirmer = self._reporter.confirmer
        failed = tuple(sorted(confirmer.failed))
        if confirmer.kept is None:
            return Confirmed(failed=failed)
        trial = len(confirmer.kept.verdicts)
        if trial == len(found.verdicts):
            self._kept_files = files
        return Confirmed(trial, failed)

    def _contents(
        self, states: Mapping[str, State], written: dict[str, tuple[State, str]]
    ) -> dict[str, tuple[str, bytes | None]]:
        """Return model -> (weight file name, content); content is None if an earlier call returned it.

        Args:
            states: model name -> weights.
            written: model name -> weights and name of the last file; it is brought up to date.
        """
        files: dict[str, tuple[str, bytes | None]] = {}
        for name, state in sorted(states.items()):
            known = written.get(name)
            if known is not None and known[0] is state:
                files[name] = known[1], None
            else:
                files[name] = file, _ = self._file(name, state)
                written[name] = state, file
        return files

    def _place_forms(self, found: Found) -> FormsReport | None:
        """Write the file of codes that belongs to a search's state, and return its entry in merge.json."""
        if self._forms[0] is not found.forms:
            self._codes = {
                use: found.codes.get(use) or self._codes[use] for use, form in found.forms.forms if form.bits
            }
            self._forms = found.forms, self._place(found)
        return self._forms[1]

    def _place(self, found: Found) -> FormsReport | None:
        """Write a file of codes, and return its entry in merge.json; None if no weight is kept as codes."""
        made = forms_file(found.forms, {**self._codes, **found.codes}, found.states, self._bases)
        if made is None:
            return None
        content, report = made
        self._store.place({report.file: content})
        return report

    def _file(self, name: str, state: State) -> tuple[str, bytes]:
        """Return the name and the content of a model's weight file; the name contains a hash of the content."""
        content, suffix = weight_file(self._subjects[name].network, state, self._workload.root)
        digest = hashlib.sha256(content).hexdigest()[:8]
        return f"{name}-{digest}.{suffix}", content
