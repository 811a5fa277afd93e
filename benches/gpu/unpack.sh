#!/bin/bash
# unpack.sh PIECES FOLDER: joins what pack.sh made and was carried here, checks it, and unpacks it. May run again
# when more pieces have come: what is there already is written once more.
set -euo pipefail
pieces=$(realpath "${1:?usage: unpack.sh PIECES FOLDER}")
folder=$(realpath -m "${2:?usage: unpack.sh PIECES FOLDER}")
mkdir -p "$folder"
cd "$pieces"
[ ! -e SHA256SUMS ] || sha256sum --check --quiet --ignore-missing SHA256SUMS
for first in *.tar.xz.00; do
	name=${first%.00}
	if [ -e SHA256SUMS ]; then
		while read -r _ piece; do [ -e "$piece" ] || { echo "error: ${piece#./} has not come" >&2; exit 1; }
		done < <(grep -F " ./$name." SHA256SUMS)
	fi
	if command -v xz > /dev/null; then
		cat "$name".[0-9][0-9] | xz -dc | tar -C "$folder" -xf -
	else
		cat "$name".[0-9][0-9] | python3 -c 'import sys, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(sys.argv[1])' "$folder"
	fi
	echo "unpacked ${name%.tar.xz}"
done
