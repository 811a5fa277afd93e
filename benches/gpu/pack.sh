#!/bin/bash
# Packs what a GPU machine needs that has a driver and nothing else: no network, no cargo, no GStreamer.
#
#   benches/gpu/pack.sh OUT [PART…]       (from the workspace's root; PARTs as below, default: all but vit)
#
#   program    clipmill, the program `gpu`, and every library that they load, glibc apart
#   decoders   GStreamer's plugins and FFmpeg, likewise: from this machine's Debian packages, nothing is installed
#   kernels    compiled here for CAPABILITIES, so that the machine can do without NVRTC
#   nvrtc      NVRTC itself (`make gpu`), for devices of other capabilities
#   tensorrt   TensorRT, where $CLIPMILL_HOME/tensorrt has it
#   model      the default model and ONNX Runtime
#   vit        a model of ViT-B/32's shape with made-up weights; needs Python with onnx (PYTHON)
#   clips      the demo clips, and those of CLIPS, a folder
#
# OUT gets each as NAME.tar.xz.NN in pieces of at most 60 MiB, their sums, and unpack.sh. On the machine:
#   bash unpack.sh PIECES FOLDER && bash FOLDER/run.sh
#
# Settings: PROFILE (release; debug), CAPABILITIES ("80 90 100"), CLIPS, CLIPMILL_HOME, PYTHON, XZ (-6).
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$(realpath -m "${1:?usage: benches/gpu/pack.sh OUT [PART…]}"); shift
PROFILE=${PROFILE:-release}
CAPABILITIES=${CAPABILITIES:-80 90 100}
HOME_FOLDER=${CLIPMILL_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/clipmill}
PYTHON=${PYTHON:-$HOME_FOLDER/setup-venv/bin/python}
PIECE_BYTES=$((60 << 20))
# What reads files and streams, and NVIDIA's decoders; software decoders are FFmpeg's, whose libraries come too.
PLUGINS="app avi coreelements isomp4 jpeg jpegformat libav matroska mpegpsdemux mpegtsdemux nvcodec typefindfunctions \
	videoconvertscale videoparsersbad vpx"
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(program decoders kernels nvrtc tensorrt model clips)

stage=$OUT/.stage
rm -rf "$stage"
mkdir -p "$stage"

# The libraries that a file loads when it starts, as this machine finds them. glibc and the loader are the
# machine's own: a driver's libraries need those.
closure() { # TO FILE…
	local to=$1 found; shift
	mkdir -p "$to"
	found=$(for file; do ldd "$file" | awk '/=> \//{print $3} /not found/{print "MISSING " $1 > "/dev/stderr"}'; done | sort -u \
		| grep -vE '/(ld-linux[^/]*|lib(c|m|dl|pthread|rt|resolv|util))\.so[.0-9]*$')
	for library in $found; do cp -nL "$library" "$to/"; done
}

# Cargo's newest program of a bench has a hash in its name.
gpu_program() { find "target/$PROFILE/deps" -maxdepth 1 -name 'gpu-*' -type f -executable -printf '%T@ %p\n' \
	| sort -rn | while read -r _ path; do if "$path" --help 2> /dev/null | grep -q 'parity'; then echo "$path"; break; fi; done; }

program=$(gpu_program)
[ -x "target/$PROFILE/clipmill" ] && [ -n "$program" ] || {
	echo "error: build first: cargo build --$PROFILE -p pipeline && cargo build --$PROFILE -p benches --bench gpu" >&2; exit 1; }

make_part() { # NAME FOLDER
	local name=$1 to=$2
	case $name in
	program)
		mkdir -p "$to/bin"
		cp "target/$PROFILE/clipmill" "$to/bin/clipmill"
		cp "$program" "$to/bin/gpu"
		strip --strip-debug "$to"/bin/*
		closure "$to/lib" "$to"/bin/*
		cp benches/gpu/run.sh "$to/"
		cp -r configs "$to/"
		git describe --always --dirty --abbrev=12 > "$to/COMMIT"
		# The oldest glibc that will do.
		# Newer ones than a machine has may want a newer glibc, and every machine with C++ has its own.
		mkdir "$to/lib-fallback"
		for library in libstdc++.so.6 libgcc_s.so.1 libexpat.so.1; do
			[ ! -e "$to/lib/$library" ] || mv "$to/lib/$library" "$to/lib-fallback/"
		done
		objdump -T "$to"/bin/* "$to"/lib/* 2> /dev/null | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -1 > "$to/GLIBC" ;;
	decoders)
		local from; from=$(pkg-config --variable=pluginsdir gstreamer-1.0)
		mkdir -p "$to/gstreamer"
		for plugin in $PLUGINS; do
			if [ -e "$from/libgst$plugin.so" ]; then cp "$from/libgst$plugin.so" "$to/gstreamer/"; else echo "no plugin $plugin here" >&2; fi
		done
		cp "$(pkg-config --variable=libexecdir gstreamer-1.0 2> /dev/null || dirname "$from")"/gstreamer-1.0/gst-plugin-scanner \
			"$to/gstreamer/" 2> /dev/null || find "$(dirname "$from")" /usr/libexec -name gst-plugin-scanner -exec cp {} "$to/gstreamer/" \; -quit
		closure "$to/lib" "$to"/gstreamer/*
		# What the program has is in its own part.
		if [ -d "$stage/program" ]; then for library in "$to"/lib/*; do
			for place in lib lib-fallback; do [ ! -e "$stage/program/$place/${library##*/}" ] || rm "$library"; done
		done; fi ;;
	kernels)
		"$program" --nvrtc "$HOME_FOLDER/gpu/nvrtc" compile "$to/home/kernels" $CAPABILITIES ;;
	nvrtc | tensorrt)
		local where=$name
		[ "$name" = tensorrt ] || where=gpu/$name
		[ -d "$HOME_FOLDER/$where" ] || { echo "left out: there is no $HOME_FOLDER/$where" >&2; return 1; }
		mkdir -p "$to/home/$(dirname "$where")"
		cp -rL "$HOME_FOLDER/$where" "$to/home/$where" ;;
	model)
		mkdir -p "$to/home/models"
		cp -rL "$HOME_FOLDER/lib" "$to/home/"
		cp -rL "$HOME_FOLDER/models/efficientnet-lite0-minilm" "$to/home/models/" ;;
	vit)
		"$PYTHON" benches/peers/make_model.py "$to/home/models/vit-b32-random" --levels 16 ;;
	clips)
		mkdir -p "$to/clips"
		cp "$HOME_FOLDER"/clips/* "$to/clips/"
		[ -z "${CLIPS:-}" ] || cp "$CLIPS"/*.* "$to/clips/" ;;
	*) echo "error: no part is called $name" >&2; exit 2 ;;
	esac
}

for name in "${parts[@]}"; do
	make_part "$name" "$stage/$name" || { rm -rf "${stage:?}/$name"; continue; }
	rm -f "$OUT/$name".tar.xz.*
	tar -C "$stage/$name" --owner=0 --group=0 --sort=name --mtime=@0 -cf - . | xz -T0 "${XZ:--6}" -c \
		| split -b $PIECE_BYTES -d -a 2 - "$OUT/$name.tar.xz."
	echo "$name: $(du -sm "$stage/$name" | cut -f1) MiB in $(du -cm "$OUT/$name".tar.xz.* | tail -1 | cut -f1)"
done
rm -rf "$stage"
cp benches/gpu/unpack.sh "$OUT/"
(cd "$OUT" && sha256sum ./*.tar.xz.* > SHA256SUMS)
