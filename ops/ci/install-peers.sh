#!/usr/bin/env bash
# Installs the servers and tools the tests want that nobody here wrote: node-opcua, libmodbus, PostgreSQL, Chromium, socat, strace, FUSE.
# Debian or Ubuntu; safe to run again. Run as root, or with sudo.
set -euo pipefail
cd "$(dirname "$0")"
want=()
for package in chromium postgresql libmodbus-dev pkg-config gcc libc6-dev socat strace iproute2 fuse3 e2fsprogs; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || want+=("$package")
done
if [ "${#want[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${want[@]}" >/dev/null
fi
command -v node >/dev/null || { echo "node 20 or newer is missing: install nodejs and npm"; exit 3; }
if [ ! -d opcua-server/node_modules/node-opcua ]; then
    (cd opcua-server && npm install --no-audit --no-fund --no-package-lock --loglevel=error)
fi
echo "peers: node-opcua $(node -p 'require("./opcua-server/node_modules/node-opcua/package.json").version'), libmodbus $(pkg-config --modversion libmodbus), $(ls -d /usr/lib/postgresql/* | tail -1 | xargs basename | sed 's/^/PostgreSQL /'), $(chromium --version 2>/dev/null | cut -d' ' -f1,2)"
