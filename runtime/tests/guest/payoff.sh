# What a session costs and gains, in programs of different rhythm. Prints
# "CELL NAME RATE" lines: operations in a second of the guest's clock, which counts
# instructions.
cd /results

cell() { # CELL COMMAND...
	local cell=$1; shift
	"$@" | while read -r line; do echo "$cell $line"; done
}

# The kernel is busy with itself after booting; idle time passes at once.
sleep 20
# What the module costs a process that has nothing to do with it.
cell unloaded pace short 100 400
module load /ub/modules/ub_gate.ko >&2
module load /ub/modules/ub.ko >&2
cell loaded pace short 100 400
# ... and an enrolled one with nothing hot.
never="--hot-count 4294967295"
cell cold ub run --require $never -- pace short 100 400
cell cold ub run --require $never -- pace sparse 100 400

# What a machine decides on which rides are measured first.
ub doctor --measure >doctor || true
cell machine ub run --require --report machine.json -- pace short 3000 400
# The others are decided gap by gap, also where this machine would not ride at all.
both() { # RHYTHM WARM_MS TIMED_MS
	cell native pace "$@"
	cell ub ub run --require --ride-anyway --report $1.json --log $1.log -v -- pace "$@"
}
sleep 2
for rhythm in short long sparse compute; do
	both $rhythm 3000 1000
done
both phases 4000 2000
# Time enough to be retired.
slow="--ride-anyway --debug-slow $(pace address):4000"
cell slowed ub run --require $slow --report slowed.json --log slowed.log -v -- pace short 4000 1000
