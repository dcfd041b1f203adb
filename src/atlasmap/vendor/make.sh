#!/bin/sh
# Each library as one file, of the versions in package-lock.json. Needs node and npm.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here"/package.json "$here"/package-lock.json "$here"/*.entry.js "$work"
cd "$work"
npm ci --silent
for name in scatterplot tables; do
  npx esbuild $name.entry.js --bundle --minify --format=iife --global-name=$name --target=es2020 \
    --log-level=warning --outfile="$here/$name.js"
done
cp node_modules/datatables.net-dt/css/dataTables.dataTables.min.css "$here/tables.css"
for folder in node_modules/* node_modules/@flekschas/*; do
  case $folder in node_modules/@esbuild | node_modules/esbuild | node_modules/@flekschas) continue ;; esac
  printf '== %s ==\n' "$(node -p "const p = require('./$folder/package.json'); p.name + ' ' + p.version + ', ' + p.license")"
  cat "$folder"/[Ll][Ii][Cc][Ee][Nn][SsCc][Ee]* 2>/dev/null || true
  printf '\n'
done > "$here/LICENSES.txt"
