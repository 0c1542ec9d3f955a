#!/bin/sh
# Stands for adb and a phone whose files lie in `root` beside this script. Beside it lie also:
# `devices`, what `adb devices` lists; `abis`, the phone's processors; `log`, what was asked of it;
# perhaps `fails`, a command that fails.
here=$(dirname "$0")
on_phone() { printf %s "$1" | sed "s#/data/local/tmp#$here/root/data/local/tmp#g"; }
getprop() { [ "$1" = ro.product.cpu.abilist ] && cat "$here/abis"; }

if [ "$1" = devices ]; then
    echo "* daemon started successfully" >&2
    echo "List of devices attached"
    cat "$here/devices"
    exit
fi
[ "$1" = -s ] || exit 64
command=$3
echo "$2 $3 ${5##*/}" >> "$here/log"  # a push's last word is where to
if [ "$command" = "$(cat "$here/fails" 2>/dev/null)" ]; then
    echo "adb: error: failed to copy: remote No space left on device" >&2
    exit 1
fi
shift 3
case $command in
push) target=$(on_phone "$2") && rm -f "$target" && cp "$1" "$target" ;;
pull) cp "$(on_phone "$1")" "$2" ;;
shell)
    [ "$1" = -T ] || exit 64
    cd / && (eval "$(on_phone "$2")")
    ;;
*) exit 64 ;;
esac
