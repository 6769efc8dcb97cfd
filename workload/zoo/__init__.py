"""Architectures that no library ships, with the layer names or numbers of the original implementations.

======================================================  ==============================================================
factory                                                 architecture
======================================================  ==============================================================
``gemel.workload.zoo.darknet:yolov3``                   YOLOv3 (Redmon and Farhadi 2018), with Darknet's layer numbers
``gemel.workload.zoo.darknet:yolov3_tiny``              Tiny-YOLOv3, likewise
``gemel.workload.zoo.ssdlite:ssdlite_mobilenet_v2``     SSDLite-MobileNetV2 of the TensorFlow object-detection API
``gemel.workload.zoo.ssdlite:ssd_mobilenet_v2``         SSD-MobileNetV2, likewise
``gemel.workload.zoo.mobilenet:mobilenet_v2_features``  MobileNetV2 without its classifier, for embeddings
======================================================  ==============================================================

Each factory returns an ``nn.Module`` whose ``forward`` returns raw outputs, named by the class attribute
``output_names``. ``decode(size)`` describes how to decode the outputs. ``input_defaults()`` returns the preprocessing
that the model was trained with.
"""
