#!/bin/bash
# First process of a host, in namespaces of its own: host.sh NAME FOLDER SHARED-MEMORY CODE COMMAND...
# FOLDER is all it can write to: its /tmp and its home. CODE: folders, separated by ":", to be seen although in /tmp.
set -eu
name=$1 disk=$2 memory=$3 code=$4
shift 4
hostname "$name"
mount -t tmpfs -o "size=$memory" shm /dev/shm
mount --bind "$disk/hosts" /etc/hosts
see() { # keep a folder where it is when another one becomes /tmp
    place=$1
    case $1 in /tmp/*) place=$disk/tmp${1#/tmp} && mkdir -p "$place" ;; esac
    mount --bind "$1" "$place"
}
see "$disk"
IFS=:
for each in $code; do
    see "$each"
    mount -o remount,bind,ro "$place"
done
unset IFS
mount --rbind "$disk/tmp" /tmp
mount -o remount,bind,ro / # nothing passes from host to host by the disk
cd "$disk"
touch booted
while :; do # as a service manager does: what ends is started again, and what it left behind is ended
    "$@" || true
    kill -KILL -1 2>/dev/null || true # all but this one
    sleep 1
done >>"$disk/log" 2>&1
