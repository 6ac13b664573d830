# A program whose only hot gap is slow in a ride, on purpose, and the same program
# as it is. The logs tell what the supervisor made of it and when. Then what the program
# does in a second of the guest's clock, natively and when every passage is ridden, with
# as many samples as where rides pay.
cd /results
address=$(pace address)
echo "address $address"
ub run --require --ride-anyway --report slowed.json --log slowed.log -v --first-hold-s 6 --debug-slow $address:4000 -- pace short 9500 100 >&2
ub run --require --ride-anyway --report plain.json --log plain.log -v -- pace short 2400 100 >&2
echo "native $(pace short 100 400)"
all="--native-interval 4294967295 --hot-count 16 --sample-interval 128"
echo "ridden $(ub run --require $all -- pace short 2400 400)"
