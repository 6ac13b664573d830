# A breakpoint with a condition, single steps, a watchpoint, a call, many hits,
# in a program that is stopped in the middle of a ride.
set pagination off
set confirm off
set width 0
break *one_round if *(long *)&rounds % 1000 == 5
continue
continue
echo begin\n
set $i = 0
while $i < 100
	x/i $pc
	stepi
	set $i = $i + 1
end
echo end\n
delete
watch *(long *)&rounds
set $i = 0
while $i < 3
	set $before = *(long *)&rounds
	continue
	printf "watched: %ld\n", *(long *)&rounds - $before
	set $i = $i + 1
end
delete
set $before = *(long *)&rounds
call (void)one_round()
printf "called: %ld\n", *(long *)&rounds - $before
printf "user code: %d %d\n", $cs == 0x33, $rip < 0x800000000000
break *one_round
continue
set $before = *(long *)&rounds
ignore $bpnum 199
continue
printf "hits: %ld\n", *(long *)&rounds - $before
delete
detach
