#!/bin/sh
# Makes Vigil a service of this machine, and of Windows around WSL: docs/service.md.
#
#   sudo ./install_wsl_service.sh install|uninstall|status|verify     each has --help
#
# DESTDIR                                        stands before every path that is written
# POWERSHELL WSL_EXE SCHTASKS POWERCFG WSLPATH   name Windows' tools
# VIGIL_VENV VIGIL_PYTHON                        as for ./vigil
#
# This file finds a Python; the package `service` does the work, with nothing but the standard library.
set -eu
unset PYTHONHOME PYTHONPATH

self=$0
if [ -h "$self" ]; then self=$(readlink -f -- "$self"); fi
case $self in */*) ;; *) self=./$self ;; esac
root=$(CDPATH='' cd -- "${self%/*}" && pwd -P)

new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
for python in "${VIGIL_VENV:-$root/.venv}/bin/python" "${VIGIL_PYTHON:-python3}" python3.13 python3.12 python3.11 ''; do
  if [ -n "$python" ] && "$python" -I -c "$new_enough" 2>/dev/null; then break; fi
done
if [ -z "$python" ]; then
  echo 'vigil: no Python of 3.11 or newer is here: give ./vigil setup, which says how to get one, then the same command again' >&2
  exit 69
fi
# -B: a root's look must leave nothing in the owner's clone
PYTHONPATH=$root exec "$python" -P -s -B -m service.install "$root" "$@"
