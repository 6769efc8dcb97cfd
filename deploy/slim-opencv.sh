#!/bin/sh
# Builds OpenCV's own Python package with nothing in it that gemel does not call: no FFmpeg, OpenBLAS, IPP, OpenCL,
# camera calibration, stereo or features. Resizing and drawing are compiled from the same sources.
#   sh deploy/slim-opencv.sh FOLDER     # pip install FOLDER/*.whl, then gemel
# Needs a C++ compiler and pip, and on two cores about half an hour. The wheel is for this Python and this machine's libc.
set -eu
version=${OPENCV_VERSION:-5.0.0.93}
CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DBUILD_LIST=core,imgproc,imgcodecs,dnn,python3
	-DBUILD_JPEG=ON -DBUILD_PNG=ON -DBUILD_TIFF=ON -DBUILD_WEBP=ON -DBUILD_ZLIB=ON
	-DWITH_AVIF=OFF -DWITH_OPENEXR=OFF -DBUILD_OPENEXR=OFF -DWITH_OPENJPEG=OFF -DWITH_JASPER=OFF
	-DWITH_FFMPEG=OFF -DWITH_LAPACK=OFF -DWITH_IPP=OFF -DWITH_ITT=OFF -DWITH_OPENCL=OFF"
# CMake takes the list of options in one line. The font of other scripts than Latin is fetched while OpenCV is built:
# OPENCV_FONT=OFF builds without a network, and labels in those scripts are then drawn as boxes.
CMAKE_ARGS="$(echo "$CMAKE_ARGS" | tr -s '\n\t' ' ') -DWITH_UNIFONT=${OPENCV_FONT:-ON}"
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export CMAKE_ARGS CMAKE_BUILD_PARALLEL_LEVEL
exec "${PYTHON:-python3}" -m pip wheel --no-deps --no-binary opencv-python-headless \
	--wheel-dir "$1" "opencv-python-headless==$version"
