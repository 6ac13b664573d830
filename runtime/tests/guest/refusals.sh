# What `ub run` and the kernel say when something cannot be. Each case leaves
# its name, exit status, standard output and standard error.
cd /results
printf 'exit 3\n' >/tmp/not-elf
printf '\177ELF' >/tmp/short-elf
cp /tmp/not-elf /tmp/not-executable
chmod 755 /tmp/not-elf /tmp/short-elf
chmod 644 /tmp/not-executable

try() { # NAME COMMAND...
	local name=$1 status=0
	shift
	echo "ub test: $name" >/dev/kmsg
	"$@" >$name.out 2>$name.err || status=$?
	echo $status >$name.status
}

cannot_be_executed() { # PREFIX COMMAND...
	local prefix=$1
	shift
	try $prefix-not-elf "$@" /tmp/not-elf
	try $prefix-short-elf "$@" /tmp/short-elf
	try $prefix-missing "$@" /tmp/missing
	try $prefix-missing-in-path "$@" missing-program
	try $prefix-not-executable "$@" /tmp/not-executable
	try $prefix-folder "$@" /tmp
}

commands() { # PREFIX
	try $1-program ub run -- sh -c 'echo hello; exit 7'
	try $1-required ub run --require -- sh -c 'echo hello; exit 7'
	cannot_be_executed $1 ub run --
	try $1-killed ub run -- sh -c 'kill -9 $$'
}

nobody() {
	setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
}

cannot_be_executed env env
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
# As a newer kernel would say it.
weaknesses=/sys/devices/system/cpu/vulnerabilities
mount -t tmpfs weaknesses $weaknesses
echo 'Mitigation: Something' >$weaknesses/new_weakness
try weakness ub run -- sh -c 'echo hello; exit 7'
try weakness-required ub run --require -- sh -c 'echo hello; exit 7'
echo 'Not affected' >$weaknesses/new_weakness
try no-weakness ub run --require -- sh -c 'echo hello; exit 7'
umount $weaknesses
# No session may be left, or the module would be in use.
for i in 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9; do
	try unload module unload ub
	! grep -q ok unload.out || break
	sleep 0.1
done
