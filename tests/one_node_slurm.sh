#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, for the tests of `--on slurm`:
#
#     tests/one_node_slurm.sh         install where missing, configure and start; again: already up
#     tests/one_node_slurm.sh stop    cancel what runs, stop, take the configuration away
#
# For a container or a throw-away machine: root only, and never where SLURM is configured already.
set -euo pipefail

conf=/etc/slurm/slurm.conf
mark="# written by tests/one_node_slurm.sh"
state=/var/spool/one_node_slurm

die() { echo "one_node_slurm: $*" >&2; exit 1; }
ours() { [[ -f $conf && $(head -n 1 "$conf") == "$mark" ]]; }
node() { timeout 10 sinfo --noheader --format=%T 2>/dev/null || true; }  # its state
up() { [[ $(node) =~ ^(idle|mixed|allocated|completing)$ ]]; }
wait_for() {  # half a minute at most
    local until=$((SECONDS + 30))
    until "$@"; do
        ((SECONDS < until)) || return 1
        sleep 0.2
    done
}
credentials() { timeout 10 munge --no-input 2>/dev/null | timeout 10 unmunge >/dev/null 2>&1; }
running() {  # a dead one that nobody reaped does not count
    [[ -f $state/$1.pid ]] && grep -q '^State:[[:space:]]*[^Z]' "/proc/$(<"$state/$1.pid")/status" \
        2>/dev/null
}
ended() { ! running "$1"; }
empty() { [[ -z $(timeout 10 squeue --noheader 2>/dev/null) ]]; }

end() {
    if running "$1"; then
        kill "$(<"$state/$1.pid")"
        wait_for ended "$1" || kill -9 "$(<"$state/$1.pid")"  # nothing of it is wanted any more
        wait_for ended "$1" || die "$1 does not end"
    fi
}

install_packages() {
    local program missing=()
    for program in slurmctld slurmd sbatch munged; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [[ ${#missing[@]} -eq 0 ]] && return
    command -v apt-get >/dev/null || die "no ${missing[*]}, and no apt-get to install them"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install \
        --no-install-recommends slurm-wlm munge; } >"$state/apt.log" 2>&1 \
        || die "cannot install slurm-wlm and munge (see $state/apt.log)"
}

configure() {
    local name cpus memory
    name=$(hostname -s)
    cpus=$(nproc --all)  # without --all it minds OMP_NUM_THREADS
    memory=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
    mkdir -p "$(dirname "$conf")"
    cat >"$conf" <<END
$mark
ClusterName=one_node
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
# snakemake's executor wants three times slurm-init-seconds-before-status-checks here at least
MinJobAge=300
KillWait=5
InactiveLimit=0
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=$name Default=YES MaxTime=INFINITE State=UP
END
}

start_munge() {
    credentials && return
    install -d -o munge -g munge -m 0755 /run/munge
    install -d -o munge -g munge -m 0700 /var/lib/munge /var/log/munge /etc/munge
    [[ -f /etc/munge/munge.key ]] || setpriv --reuid munge --regid munge --clear-groups mungekey
    setpriv --reuid munge --regid munge --clear-groups munged
    ln -sf /run/munge/munged.pid "$state/munged.pid"
    wait_for credentials || die "munged does not answer"
}

start() {
    if ours && up; then
        echo "one-node SLURM is up already: partition debug, node $(node)"
        return
    fi
    mkdir -p "$state"/{controller,node}
    chmod 0755 "$state"
    install_packages
    configure
    start_munge
    running slurmctld || slurmctld -c  # -c: nothing of an earlier cluster
    running slurmd || slurmd
    wait_for up || die "the node is $(node), not idle (see $state/*.log)"
    echo "one-node SLURM is up: partition debug, node $(node)"
}

stop() {
    ours || { echo "one-node SLURM is not here"; return; }
    if running slurmctld; then
        timeout 10 scancel --user=root --quiet 2>/dev/null || true
        wait_for empty || true
    fi
    end slurmd
    end slurmctld
    end munged
    rm -f "$conf" "$state/munged.pid"
    echo "one-node SLURM is stopped"
}

[[ $EUID -eq 0 ]] || die "must run as root"
[[ -z ${SLURM_CONF:-} ]] || die "SLURM_CONF is set: is this a real cluster?"
[[ ! -e $conf ]] || ours || die "$conf is not mine: is this a real cluster?"
ours || [[ -z $(node) ]] || die "SLURM answers already, not mine: is this a real cluster?"
case ${1:-start} in
    start) start ;;
    stop) stop ;;
    *) die "usage: one_node_slurm.sh [start|stop]" ;;
esac
