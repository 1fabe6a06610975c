#!/bin/sh
# A Chromium for the browser tests: an installed one, else apt's as root, else Playwright's own download.
python=$1
for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium with apt-get"
    apt-get update -qq
    for package in chromium-headless-shell chromium; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null && exit 0
    done
fi
"$python" -m playwright install chromium && exit 0
echo "The browser tests need Chromium, and it could not be installed: install the package chromium and try again." >&2
exit 1
