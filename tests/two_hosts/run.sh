#!/usr/bin/env bash
# Two hosts on one machine: network namespaces with names of their own, a virtual link of 1 Gbit/s and 1 ms there and back
# (link.py) between them.
#
#   tests/two_hosts/run.sh [TERNLM] [what …]
#
# Needs root, Linux with /dev/net/tun, iproute2, python3 and Open MPI (Debian: openmpi-bin). What there is, all of it unless named:
#   speed    steps of wiki-75m with and without --reduce bf16, beside what the link could do
#   stall    no packet arrives for 30 seconds: the training goes on
#   gone     the link is taken away: both processes end with a reason, and the last checkpoint is whole
set -euo pipefail
# A relative one means the caller's folder.
ternlm=${1:+$(realpath "$1")}
shift || true
cd "$(dirname "$0")/../.."
ternlm=${ternlm:-$(realpath target/release/ternlm)}
[[ -x $ternlm ]] || { echo "two_hosts: $ternlm: no program there"; exit 2; }
what=${*:-speed stall gone}
[[ $(id -u) == 0 ]] || { echo "two_hosts: needs root, to make a network"; exit 77; }
mpirun=$(command -v mpirun.openmpi || command -v mpirun) || { echo "two_hosts: no mpirun (Debian: openmpi-bin)"; exit 77; }

scratch=$(mktemp -d) link=
# Names of this run alone: it ends what is in them.
a=ternlm-$$-a b=ternlm-$$-b net=10.77.13
clean() {
    for pid in $(ip netns pids $a 2>/dev/null) $(ip netns pids $b 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip netns del $a 2>/dev/null || true
    ip netns del $b 2>/dev/null || true
    kill "$link" 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean EXIT

make_link() {
    : > "$scratch/link"
    python3 tests/two_hosts/link.py $a $b > "$scratch/link" &
    link=$!
    disown
    until grep -q up "$scratch/link"; do kill -0 $link; sleep 0.1; done
}
for host in $a $b; do
    ip netns add $host
    ip -n $host link set lo up
done
make_link

# mpirun starts what it needs on the other host by this, as it would by ssh.
cat > "$scratch/agent" <<END
#!/bin/bash
host=\$1; shift
exec ip netns exec $b unshare --uts sh -c 'hostname ternlm-b; exec sh -c "\$*"' sh "\$@"
END
chmod +x "$scratch/agent"
# Both hosts are one machine: bound, each would have the same first core.
on_two() {
    ip netns exec $a unshare --uts env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        sh -c 'hostname ternlm-a; exec "$@"' sh "$mpirun" --host $net.1:1,$net.2:1 -n 2 --map-by node --bind-to none \
        --mca plm_rsh_agent "$scratch/agent" --mca btl tcp,self --mca btl_tcp_links 2 --mca btl_tcp_if_include $net.0/24 \
        --mca oob_tcp_if_include $net.0/24 --wdir "$scratch" -x TERNLM_CACHE="$scratch/cache" "$@"
}
training=(train copy --threads 1 --set train.steps=1000000 --set train.save_every=10 --set train.log_every=10 --set model.hidden_size=256 --set model.head_dim=64)
step_of() { { find "$1/checkpoints" -maxdepth 1 -regex '.*/step-[0-9]*' 2>/dev/null || true; } | sed 's/.*step-0*//' | sort -n | tail -1; }
until_saved() { # folder, more than
    for _ in $(seq 1500); do
        local step
        step=$(step_of "$1")
        if [[ -n $step && $step -gt $2 ]]; then return; fi
        sleep 0.2
    done
    echo "two_hosts: no checkpoint after step $2"
    tail -n 5 "$1.log"
    exit 1
}

# Process numbers of ternlm on both.
ours() {
    for pid in $(ip netns pids $a) $(ip netns pids $b); do
        if [[ $(readlink "/proc/$pid/exe") == "$ternlm" ]]; then echo "$pid"; fi
    done
}
both_run() {
    [[ $(ours | wc -l) == 2 ]] || { echo "two_hosts: found $(ours | wc -l) processes of $ternlm, wanted 2"; exit 1; }
}

for each in $what; do
    case $each in
    speed)
        ip netns exec $a ping -qc 5 -i 0.2 $net.2 | tail -1
        for more in "" "--deterministic" "--reduce bf16" "--shard-optimizer"; do
            echo "== wiki-75m, two hosts $more"
            on_two "$ternlm" bench train --recipe wiki-75m --threads 1 --steps ${STEPS:-4} --patience 60 $more |
                grep -E 'tokens/s|processes'
        done
        ;;
    stall)
        # A connection tries again after ever longer times: up to 51 s after the beginning of such a stall.
        echo "== stall of 30 s"
        on_two "$ternlm" "${training[@]}" --out "$scratch/stall" --patience 180 > "$scratch/stall.log" 2>&1 &
        until_saved "$scratch/stall" 0
        both_run
        kill -USR1 $link
        before=$(step_of "$scratch/stall")
        sleep 30
        kill -USR2 $link
        until_saved "$scratch/stall" $((before + 20))
        echo "went on: step $before before, $(step_of "$scratch/stall") after"
        # The one of rank 0 asks all to stop.
        kill -TERM "$(ours | head -1)"
        # Each on a line of its own: left of && a failure would be passed over.
        wait %%
        grep Stopped "$scratch/stall.log"
        ;;
    gone)
        echo "== the link goes"
        on_two "$ternlm" "${training[@]}" --out "$scratch/gone" --patience 20 > "$scratch/gone.log" 2>&1 &
        until_saved "$scratch/gone" 0
        both_run
        start=$SECONDS
        kill -9 $link
        while [[ -n $(ours) ]]; do
            ((SECONDS - start < 120)) || { echo "two_hosts: the processes are still there"; exit 1; }
            sleep 0.5
        done
        echo "both processes ended after $((SECONDS - start)) s"
        # The other one's words went by the link; the launcher passes them on when it comes to it.
        for _ in {1..20}; do
            grep -qaE '^error' "$scratch/gone.log" && break
            sleep 0.5
        done
        grep -aE '^error' "$scratch/gone.log" || { echo "two_hosts: no reason"; tail -n 5 "$scratch/gone.log"; exit 1; }
        # The launcher's own connection to the other host takes minutes to give up (oob_tcp_keepalive_*, tcp_retries2).
        for pid in $(ip netns pids $a) $(ip netns pids $b); do kill -9 "$pid" 2>/dev/null || true; done
        wait %% 2>/dev/null || true
        "$ternlm" verify "$(find "$scratch/gone/checkpoints" -maxdepth 1 -regex '.*/step-[0-9]*' | sort | tail -1)" | tail -1
        make_link
        ;;
    *) echo "two_hosts: $each: wanted speed, stall or gone"; exit 2 ;;
    esac
done
