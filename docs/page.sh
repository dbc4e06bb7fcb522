#!/usr/bin/env bash
# Makes docs/page.png: the live page while examples/flood runs. Needs Go,
# chromium, chromedriver and curl.
set -euo pipefail
cd "$(dirname "$0")/.."

page=127.0.0.1:8099 driver=127.0.0.1:9515
go build -o "${TMPDIR:-/tmp}/flood" ./examples/flood
"${TMPDIR:-/tmp}/flood" -duration 100s -serve "$page" >/dev/null &
flood=$!
chromedriver --port="${driver#*:}" --silent >/dev/null &
trap 'kill $flood %2 2>/dev/null || true' EXIT

ask() { curl -sf --retry 20 --retry-connrefused --retry-delay 1 "http://$driver/$1" "${@:2}"; }
value() { sed -E 's/.*"'"$1"'":"([^"]*)".*/\1/'; }

session=$(ask session -d '{"capabilities":{"alwaysMatch":{"goog:chromeOptions":{"args":["--headless","--no-sandbox","--disable-gpu",
	"--disable-background-networking","--disable-component-update","--disable-sync","--hide-scrollbars","--window-size='"${SIZE:-1100,900}"'"]}}}}' | value sessionId)
ask "session/$session/url" -d '{"url":"http://'"$page"'/"}' >/dev/null
sleep 75 # for a plot of some length
ask "session/$session/screenshot" | value value | base64 -d >"${1:-docs/page.png}"
ask "session/$session" -X DELETE >/dev/null
