#!/bin/sh
# Make a virtual environment with everything cos_ml needs: set-up.sh VENV STACK. Called by the Makefile.
# STACK names a file of constraints; "integrations" is "latest" with the packages that integrations are tested with, and
# "newest" the newest releases that exist, beyond the bounds of setup.cfg.
set -eu
venv=$1
stack=$2
python=${PYTHON:-python3}

missing=""
need() { # WHAT  DEBIAN-PACKAGE  FEDORA-PACKAGE
    missing="$missing
  $1
      Debian, Ubuntu:  apt-get install $2
      Fedora, RHEL:    dnf install $3"
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || need "CPython 3.11 or later (as $python; PYTHON=... names another)" "python3" "python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || need "Python's venv module" "python3-venv" "python3.11"
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
version=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1) || version=""
[ "${version:-0}" -ge 17 ] || need "a Java runtime, 17 or 21 (found: ${version:-none})" "openjdk-17-jre-headless" "java-17-openjdk-headless"
command -v c++ >/dev/null || command -v g++ >/dev/null || need "a C++ compiler" "g++" "gcc-c++"
[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])' 2>/dev/null)/Python.h" ] || need "Python's headers" "python3-dev" "python3-devel"
if [ -n "$missing" ]; then
    printf 'This machine lacks:%s\n' "$missing" >&2
    exit 1
fi

extras=cpu,test
constraints=constraints/$stack.txt
case $stack in
petastorm) extras=$extras,petastorm ;;
latest | newest) extras=$extras,connect ;;
integrations) extras=$extras,connect,integrations constraints=$venv/constraints.txt ;;
esac
echo "Setting up $venv with the \"$stack\" stack (about 5 minutes, once) ..."
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# MLflow 3.17 wants pyarrow below 26.
[ "$stack" != integrations ] || sed 's/^pyarrow==.*/pyarrow==25.0.1/' constraints/latest.txt >"$constraints"
pip="$venv/bin/python -m pip --disable-pip-version-check -q"
if [ "$stack" = newest ]; then
    # shellcheck disable=SC2046 # a word for each requirement
    $pip install --upgrade setuptools wheel $("$venv/bin/python" tools/requirements.py "$extras")
    $pip install --no-build-isolation --no-deps -e .
    "$venv/bin/cos-ml" install-horovod || echo "Horovod does not build here: tests of several ranks will fail." >&2
    "$venv/bin/python" -m pip --disable-pip-version-check list
    exit
fi
$pip install -c "$constraints" setuptools wheel
$pip install -c "$constraints" --no-build-isolation -e ".[$extras]"
if [ "$stack" = integrations ]; then # they require the package tensorflow, which would overwrite tensorflow-cpu
    $pip install -c "$constraints" --no-deps keras-hub tensorflow-text
fi
"$venv/bin/cos-ml" install-horovod
