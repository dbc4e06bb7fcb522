#!/usr/bin/env bash
# Makes docs/page.png, or the file that is named: the live page while examples/flood runs. Needs
# Go, chromium and curl. SIZE is the size of the window, and THEME=dark makes a dark one.
set -euo pipefail
cd "$(dirname "$0")/.."

page=127.0.0.1:8099
work=$(mktemp -d)
go build -o "$work/flood" ./examples/flood
"$work/flood" -duration 400s -serve "$page" >/dev/null &
flood=$!
trap 'kill $flood 2>/dev/null || true; rm -rf "$work"' EXIT

shoot() {
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --disable-background-networking --disable-component-update \
		--disable-sync --user-data-dir="$work/chromium" ${THEME:+--blink-settings=preferredColorScheme=0} \
		--window-size="${SIZE:-1100,900}" --screenshot="$work/page.png" "http://$page/" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
}

sleep 70 # for a plot of some length
for _ in {1..40}; do # until one that all share is full at that moment
	shoot
	curl -sf "http://$page/?format=text" | grep -E '^(system|transient|service:|protocol:).* (are|is) (full|9[0-9.]* % full)' && break
done
mv "$work/page.png" "${1:-docs/page.png}"
