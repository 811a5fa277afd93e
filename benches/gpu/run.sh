#!/bin/bash
# Proves and measures the GPU path on a machine that pack.sh packed for: one command, no cargo, no network.
#
#   run.sh [--small] [STEP…]
#
#   parity     every kernel against the CPU, on random inputs
#   nvdec      NVIDIA's decoders against software, on the packed clips: PSNR, frames, times
#   engine     TensorRT (or ONNX Runtime's CUDA provider) against ONNX in fp32: cosine
#   kernels    how fast every kernel is, as a share of the memory's bandwidth
#   pipeline   the packed clips from end to end: on the CPU, then by NVDEC and TensorRT with every packed model
#   ucf101     as many clips as UCF101 has, linked to the packed AVI files: every frame, then two frames a second,
#              with every way of decoding; what the card did meanwhile is in dmon.log. N clips by N=…
#
# A folder `results/DATE-MACHINE` beside this gets a README with command, commit and machine, JSON and logs. A step
# that fails is told at the end, and the others go on. Settings: RESULTS; LIBRARIES, folders that come before all
# others; EXTRA, arguments for every call of the program `gpu`.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
small=()
steps=()
for argument; do
	case $argument in
	--small) small=(--small) ;;
	parity | nvdec | engine | kernels | pipeline | ucf101) steps+=("$argument") ;;
	*) echo "error: no step is called $argument" >&2; exit 2 ;;
	esac
done
[ ${#steps[@]} -gt 0 ] || steps=(parity nvdec engine kernels pipeline ucf101)

needed=$(cat "$here/GLIBC")
found=GLIBC_$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
if [ "$(printf '%s\n' "$needed" "$found" | sort -V | tail -1)" != "$found" ]; then
	echo "error: this machine has $found, the programs need $needed: pack on an older system" >&2
	exit 1
fi

# The driver's own folder first, where the loader does not know it: what was brought must not hide it.
driver=
for folder in /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
	[ ! -e "$folder/libcuda.so.1" ] || driver+=$folder:
done
fallback=
for library in libstdc++.so.6 libgcc_s.so.1 libexpat.so.1; do
	/sbin/ldconfig -p 2> /dev/null | grep -qF "$library" || fallback=:$here/lib-fallback
done
export LD_LIBRARY_PATH=${LIBRARIES:+$LIBRARIES:}$driver$here/lib$fallback:$here/home/tensorrt${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export CLIPMILL_HOME=$here/home CLIPMILL_COMMIT
export GST_PLUGIN_SYSTEM_PATH_1_0=$here/gstreamer GST_PLUGIN_SCANNER_1_0=$here/gstreamer/gst-plugin-scanner
export GST_REGISTRY_1_0=$here/gstreamer.registry HOME=${HOME:-$here}
CLIPMILL_COMMIT=$(cat "$here/COMMIT")
results=${RESULTS:-$here/results/$(date +%F)-$(hostname)}
mkdir -p "$results"

failed=()
step() { # NAME COMMAND…
	local name=$1 code; shift
	echo "== $name: ${*//$here\//}"
	"$@" 2>&1 | tee "$results/$name.log"
	code=${PIPESTATUS[0]}
	echo "- \`${*//$here\//}\`: exit $code" >> "$results/README.md"
	[ "$code" = 0 ] || failed+=("$name")
}
gpu() { local name=$1; shift
	step "$name" "$here/bin/gpu" "${small[@]}" --kernels "$here/home/kernels" --nvrtc "$here/home/gpu/nvrtc" --results "$results" ${EXTRA:-} "$@"; }
left_out() { echo "== $1: left out: $2"; echo "- $1: left out: $2" >> "$results/README.md"; }
# Whether this clipmill has a command with such an option.
has() { "$here/bin/clipmill" "$1" --help 2> /dev/null | grep -q -- "$2"; }

{
	echo "# The GPU path on $(hostname), $(date +%F)"
	echo
	echo "\`run.sh ${small[*]} ${steps[*]}\`, commit $CLIPMILL_COMMIT."
	echo
	command -v nvidia-smi > /dev/null \
		&& nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv | sed 's/^/    /'
	echo "    $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, $(getconf GNU_LIBC_VERSION)"
	for library in libcuda.so.1 libnvcuvid.so.1 libnvrtc.so.13 libnvinfer.so.10; do
		echo "    $library: $(/sbin/ldconfig -p 2> /dev/null | grep -m1 -F "$library" | sed 's/.*=> //' | grep . || echo 'not where the system looks')"
	done
	echo
} > "$results/README.md"

"$here/bin/clipmill" doctor > "$results/doctor.log" 2>&1 || true
for name in "${steps[@]}"; do
	case $name in
	parity | kernels) gpu "$name" "$name" ;;
	nvdec)
		if has check --gpu; then step nvdec "$here/bin/clipmill" check --gpu "$here"/clips/*.*; else left_out nvdec "no \`clipmill check --gpu\`"; fi ;;
	engine)
		if has model 'compare'; then
			for model in "$here"/home/models/*/; do step "engine-$(basename "$model")" "$here/bin/clipmill" model compare "$(basename "$model")"; done
		else left_out engine "no \`clipmill model compare\`"; fi ;;
	pipeline)
		if [ -d "$here/clips" ] && [ -d "$here/home/models" ]; then
			rm -rf "$here/runs" && mkdir -p "$here/runs" && cp -r "$here/clips" "$here/runs/demo-clips"
			step pipeline env -C "$here" "$here/bin/clipmill" run configs/demo.toml
			for model in "$here"/home/models/*/; do
				model=${model%/}
				step "pipeline-gpu-${model##*/}" env -C "$here" "$here/bin/clipmill" run configs/single-gpu.toml \
					--set input.clips=clips --set output.dir="runs/gpu-${model##*/}" --set encode.model="$model"
			done
		else left_out pipeline "no clips or no model"; fi ;;
	ucf101)
		mapfile -t avis < <(find "$here/clips" -name '*.avi' 2> /dev/null | sort)
		if [ ${#avis[@]} -gt 0 ] && [ -d "$here/home/models" ]; then
			n=${N:-13320}
			[ ${#small[@]} -eq 0 ] || n=${N:-30}
			rm -rf "$here/runs/many" && mkdir -p "$here/runs/many"
			for ((i = 0; i < n; i++)); do ln -s "${avis[i % ${#avis[@]}]}" "$here/runs/many/$(printf '%05d' "$i").avi"; done
			! command -v nvidia-smi > /dev/null || { nvidia-smi dmon -s um -d 1 > "$results/dmon.log" 2>&1 & monitor=$!; }
			for model in "$here"/home/models/*/; do
				model=${model%/}
				for sampling in all=true every_ms=500; do for decoder in auto nvdec software; do
					name=ucf101-${model##*/}-${sampling%=*}-$decoder
					rm -rf "$here/runs/$name"
					step "$name" env -C "$here" "$here/bin/clipmill" run configs/single-gpu.toml --set input.clips=runs/many \
						--set output.dir="runs/$name" --set encode.model="$model" --set "sample.$sampling" \
						--set decode.backend=$decoder --set index.vectors=false
					cp "$here/runs/$name/run.json" "$results/$name.json" 2> /dev/null || true
				done; done
			done
			[ -z "${monitor:-}" ] || kill "$monitor"
		else left_out ucf101 "no AVI clips (CLIPS=FOLDER when packing) or no model"; fi ;;
	esac
done
if [ ${#failed[@]} -gt 0 ]; then
	echo "failed: ${failed[*]}" | tee -a "$results/README.md"
	exit 1
fi
echo "all passed: $results"
