#!/bin/sh
# Builds OpenCV's own Python package without what gemel never calls: no FFmpeg, OpenBLAS, IPP, OpenCL, camera calibration,
# stereo or features. What gemel calls is compiled from the same sources: 34 MB instead of 159.
#   sh deploy/slim-opencv.sh FOLDER && pip install FOLDER/*.whl && pip install .
# Needs a C++ compiler, NASM (for JPEG) and pip, and on two cores half an hour. The wheel is for this Python and machine.
# OPENCV_FONT=OFF builds without a network: the font of other scripts than Latin is fetched while OpenCV is built.
set -eu
version=${OPENCV_VERSION:-5.0.0.93}
python=${PYTHON:-python3}
command -v nasm >/dev/null || { echo "slim-opencv.sh: nasm is not installed; JPEG would be slow without it" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --no-deps --no-binary opencv-python-headless --dest "$work" \
	"opencv-python-headless==$version"
tar -xzf "$work"/*.tar.gz -C "$work"
source=$(echo "$work"/*/setup.py)
# OpenCV makes type stubs only if all modules are built, and its setup.py insists on them.
sed -i -e 's/\[ r"python\/cv2\/py.typed" \] if .*/[]/' -e 's/rearrange_cmake_output_data\["cv2.typing"\] = .*/pass/' "$source"
CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DCMAKE_MODULE_LINKER_FLAGS=-s \
-DBUILD_LIST=core,imgproc,imgcodecs,dnn,python3 -DWITH_UNIFONT=${OPENCV_FONT:-ON} \
-DBUILD_JPEG=ON -DBUILD_PNG=ON -DBUILD_TIFF=ON -DBUILD_WEBP=ON -DBUILD_ZLIB=ON \
-DWITH_AVIF=OFF -DWITH_OPENEXR=OFF -DBUILD_OPENEXR=OFF -DWITH_OPENJPEG=OFF -DWITH_JASPER=OFF \
-DWITH_FFMPEG=OFF -DWITH_LAPACK=OFF -DWITH_IPP=OFF -DWITH_ITT=OFF -DWITH_OPENCL=OFF"
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export CMAKE_ARGS CMAKE_BUILD_PARALLEL_LEVEL
"$python" -m pip wheel --no-deps --wheel-dir "$1" "${source%/setup.py}"
