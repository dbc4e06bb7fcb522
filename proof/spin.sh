#!/usr/bin/env bash
# Checks credit.pml with spin: the protocol as it is must keep every promise, and
# each broken variant must break the promise named beside it. Needs spin and a C
# compiler (Debian: apt-get install spin gcc), about 1 GiB of memory and a few
# minutes; with "deep", larger explorations with up to 12 GiB each.
set -euo pipefail
if [ $# -gt 1 ] || [[ ${1:-deep} != deep ]]; then
	echo "proof/spin.sh: unexpected argument: \"${!#}\"; expected deep, or nothing" >&2
	exit 2
fi
model=$(cd "$(dirname "$0")" && pwd)/credit.pml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
wrong=0
deadlock='invalid end state'

# run explores the model with some definitions, and leaves what pan says in out.
run() {
	spin -a "$@" "$model" >spin.out 2>&1 || { cat spin.out; exit 1; }
	gcc -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM="${memory:-4000}" -o pan pan.c
	./pan -m1000000 >out
}

states() { awk '/states, stored/ { print $1 }' out; }

sound() {
	local name=$1
	shift
	run "$@"
	if grep -q 'errors: 0' out && ! grep -q 'error:\|aborted\|too small' out; then
		printf 'sound   %10s states  %s\n' "$(states)" "$name"
	else
		wrong=1
		printf 'WRONG: %s\n' "$name"
		cat out
	fi
}

# caught explores a broken variant, in which one promise alone may end the run.
caught() {
	local broken=$1 promise=$2
	run -DBREAK_"$broken" $([ "$promise" = "$deadlock" ] || echo "-DONLY=$promise")
	if grep -q "$promise" out; then
		printf 'caught  %10s states  %-18s breaks %s\n' "$(states)" "$broken" "$promise"
	else
		wrong=1
		printf 'WRONG: %s does not break %s\n' "$broken" "$promise"
		cat out
	fi
}

sound 'two workers, two requests each, a move, a change of limit'
sound 'three workers, one request each, a change of limit' -DWORKERS=3 -DROUNDS=1 -DNO_MOVE
if [ "${1:-}" = deep ]; then
	memory=12000
	sound 'three workers, two requests each' -DWORKERS=3 -DNO_MOVE -DNO_CHANGE
	sound 'three workers, one request each, a move, a change of limit' -DWORKERS=3 -DROUNDS=1
	sound 'two workers, three requests each, a move, a change of limit' -DROUNDS=3
fi

caught HALF no_overshoot
caught HALF loose_below_half
caught ONE_LOOK no_overshoot
caught LOW_WEIGHT no_false_admission
caught HANDED_IS_USE no_false_refusal
caught MARK no_false_refusal
caught RECALL credit_conserved
caught CARRY credit_covers_use
caught COMPARE credit_covers_use
caught LIMIT loose_below_half
caught KEEP_MORE idle_bounded
caught KEEP_TIGHT tight_is_exact
caught STAYS_TIGHT turns_at_quarter
caught LOOSE_ANYTIME credit_covers_use
caught LET_GO all_locks_once
caught STRIPE_ORDER "$deadlock"
caught RELEASE zero_at_end
exit $wrong
