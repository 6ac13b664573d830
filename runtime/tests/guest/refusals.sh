# What `ub run` and the kernel say when something cannot be. Each case leaves
# its name, exit status, standard output and standard error.
cd /results
printf 'no program' >/tmp/not-elf
cp /tmp/not-elf /tmp/not-executable
cp /tmp/not-elf /tmp/short-elf
printf '\177ELF' >/tmp/short-elf
chmod 755 /tmp/not-elf /tmp/short-elf
chmod 644 /tmp/not-executable

try() { # NAME COMMAND...
	local name=$1 status=0
	shift
	echo "ub test: $name" >/dev/kmsg
	"$@" >$name.out 2>$name.err || status=$?
	echo $status >$name.status
}

commands() { # PREFIX
	try $1-program ub run -- sh -c 'echo hello; exit 7'
	try $1-required ub run --require -- sh -c 'echo hello; exit 7'
	try $1-not-elf ub run -- /tmp/not-elf
	try $1-short-elf ub run -- /tmp/short-elf
	try $1-missing ub run -- /tmp/missing
	try $1-missing-in-path ub run -- missing-program
	try $1-not-executable ub run -- /tmp/not-executable
	try $1-folder ub run -- /tmp
	try $1-killed ub run -- sh -c 'kill -9 $$'
}

nobody() {
	setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
}

commands absent
try other-kernel module load /other/ub_gate.ko
try gate-missing module load /ub/modules/ub.ko
try gate module load /ub/modules/ub_gate.ko
try twice module load /ub/modules/ub_gate.ko
try ub module load /ub/modules/ub.ko
try needed module unload ub_gate
commands present
try nobody nobody ub run -- sh -c 'echo hello; exit 7'
try nobody-required nobody ub run --require -- sh -c 'echo hello; exit 7'
# No session may be left, or the module would be in use.
for i in 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9; do
	try unload module unload ub
	! grep -q ok unload.out || break
	sleep 0.1
done
