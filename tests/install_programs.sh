#!/bin/sh
# Brings the programs that the slow tests run: prometheus and promtool into the folder $1, Chromium,
# PostgreSQL and Redis into the system. Starts no service: of Debian's package of Prometheus only the
# programs are taken, and of Redis the package without one.
set -eu
folder=$1
PATH="$folder:$PATH"

have() {
	for program; do
		command -v "$program" >/dev/null && return
	done
	return 1
}

as_root() {
	[ "$(id -u)" = 0 ] && have apt-get
}

refresh() { # the lists of packages, once, where they may be missing or old
	[ -n "${refreshed-}" ] || ! as_root || apt-get -qq update
	refreshed=yes
}

bring_prometheus() {
	have apt-get || return 1
	refresh
	scratch=$(mktemp -d)
	trap 'rm -rf "$scratch"' EXIT
	(cd "$scratch" && apt-get -qq -o APT::Sandbox::User=root download prometheus && dpkg -x prometheus_*.deb .) &&
		cp "$scratch/usr/bin/prometheus" "$scratch/usr/bin/promtool" "$folder"
}

bring_chromium() {
	as_root || return 1
	refresh
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
		chromium fonts-dejavu-core >/dev/null
}

bring_databases() {
	as_root || return 1
	refresh
	guard=/usr/sbin/policy-rc.d # what Debian asks whether an installed service may start
	[ -e "$guard" ] || { printf '#!/bin/sh\nexit 101\n' >"$guard" && chmod +x "$guard" && guarded=yes; }
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
		postgresql redis-tools >/dev/null && ok=yes
	[ -z "${guarded-}" ] || rm "$guard"
	# The program is the same, and does what it is called.
	[ -n "${ok-}" ] && ln -sf "$(command -v redis-check-rdb)" "$folder/redis-server"
}

if ! { have prometheus && have promtool; } && ! bring_prometheus; then
	echo "error: prometheus and promtool were not found; put both on PATH (prometheus.io/download)," >&2
	echo "       or, on Debian and Ubuntu, run 'apt-get update' as root and try again" >&2
	exit 1
fi
if ! have chromium chromium-browser google-chrome google-chrome-stable && ! bring_chromium; then
	echo "note: Chromium was not found, so the tests of the page will be skipped; as root this" >&2
	echo "      command installs it on Debian" >&2
fi
if ! { have redis-server && { have initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }; } &&
	! bring_databases; then
	echo "note: PostgreSQL and Redis were not found, so the tests of the stores that replicas share" >&2
	echo "      will be skipped; as root this command installs them on Debian" >&2
fi
