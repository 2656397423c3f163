#!/bin/bash
# First process of a host, in its own namespaces: host.sh NAME FOLDER SHARED-MEMORY CODE COMMAND...
# FOLDER is the only writable folder, with /tmp and home. CODE: folders, separated by ":", that stay visible below /tmp.
set -eu
name=$1 disk=$2 memory=$3 code=$4
shift 4
hostname "$name"
mount -t tmpfs -o "size=$memory" shm /dev/shm
mount --bind "$disk/hosts" /etc/hosts
see() { # keep a folder visible at its path after another one is mounted on /tmp
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
mount -o remount,bind,ro / # hosts cannot exchange files over the disk
cd "$disk"
touch booted
while :; do # like a service manager: restart a service that ends, and kill the processes that it left
    "$@" || true
    kill -KILL -1 2>/dev/null || true # all processes except this one
    sleep 1
done >>"$disk/log" 2>&1
