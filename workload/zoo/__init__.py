"""Architectures that no library ships, written so that people find a layer of the original in them.

======================================================  ==============================================================
factory                                                 what it is
======================================================  ==============================================================
``gemel.workload.zoo.darknet:yolov3``                   YOLOv3 (Redmon and Farhadi 2018), with Darknet's layer numbers
``gemel.workload.zoo.darknet:yolov3_tiny``              Tiny-YOLOv3, likewise
``gemel.workload.zoo.ssdlite:ssdlite_mobilenet_v2``     SSDLite-MobileNetV2 of the TensorFlow object-detection API
``gemel.workload.zoo.mobilenet:mobilenet_v2_features``  MobileNetV2 without its classifier, an embedding
======================================================  ==============================================================

Each is an ``nn.Module`` with a class attribute ``output_names``, whose ``forward`` gives these outputs raw;
``decode(size)`` says how they are read, and ``input_defaults()`` what the model was made to see.
"""
