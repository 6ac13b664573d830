//! Functions of redis-server as it is installed.

use anyhow::Result;

use super::Kernel;
use super::memory::{Memory, Numbers, integers, keys};
use crate::guest::Call;
use crate::loader::Image;

const PROGRAM: &str = "redis-server";

/// The kernels of this file.
pub static KERNELS: [Kernel; 7] = [
    Kernel::loaded("redis siphash", PROGRAM, siphash),
    Kernel::loaded("redis crc64", PROGRAM, crc64),
    Kernel::loaded("redis ll2string", PROGRAM, ll2string),
    Kernel::loaded("redis string2ll", PROGRAM, string2ll),
    Kernel::loaded("redis stringmatchlen", PROGRAM, stringmatchlen),
    Kernel::loaded("redis intsetFind", PROGRAM, intset_find),
    Kernel::loaded("redis lpNext and lpGet", PROGRAM, listpack),
];

fn siphash(memory: &mut Memory, image: &Image) -> Result<Call> {
    let keys = keys(400);
    let (pointers, lengths) = memory.strings(&keys);
    Ok(call!(ub_redis_siphash, image.symbol("siphash")?, pointers, lengths, keys.len()))
}

fn crc64(memory: &mut Memory, image: &Image) -> Result<Call> {
    let initialise = Call { function: image.symbol("crc64_init")?, arguments: [0; 6] };
    // SAFETY: `void crc64_init(void)` fills tables of the image and needs
    // nothing from elsewhere.
    let _: u64 = unsafe { initialise.native() };
    let data = memory.bytes(&Numbers::new(30).bytes(6000));
    Ok(call!(ub_redis_crc64, image.symbol("crc64")?, data, 6000))
}

fn ll2string(memory: &mut Memory, image: &Image) -> Result<Call> {
    let numbers: Vec<u64> = integers(200).iter().map(|number| *number as u64).collect();
    let to = memory.zeroed(22 * numbers.len() + 32);
    let function = image.symbol("ll2string")?;
    Ok(call!(ub_redis_ll2string, function, to, memory.words(&numbers), numbers.len()))
}

fn string2ll(memory: &mut Memory, image: &Image) -> Result<Call> {
    let numbers: Vec<String> = integers(200).iter().map(i64::to_string).collect();
    let (pointers, lengths) = memory.strings(&numbers);
    Ok(call!(ub_redis_string2ll, image.symbol("string2ll")?, pointers, lengths, numbers.len()))
}

fn stringmatchlen(memory: &mut Memory, image: &Image) -> Result<Call> {
    let keys = keys(60);
    let (pointers, lengths) = memory.strings(&keys);
    Ok(call!(ub_redis_match, image.symbol("stringmatchlen")?, pointers, lengths, keys.len()))
}

fn intset_find(memory: &mut Memory, image: &Image) -> Result<Call> {
    const INT64: u32 = 8;
    let members: Vec<u64> = (0..300).map(|number| number * number * 3).collect();
    let mut set = Vec::new();
    set.extend(INT64.to_le_bytes());
    set.extend((members.len() as u32).to_le_bytes());
    set.extend(members.iter().flat_map(|member| member.to_le_bytes()));
    let mut numbers = Numbers::new(31);
    let wanted: Vec<u64> = (0..150)
        .map(|_| members[numbers.below(members.len() as u64) as usize] + numbers.below(2))
        .collect();
    let (set, wanted_at) = (memory.bytes(&set), memory.words(&wanted));
    Ok(call!(ub_redis_intset, image.symbol("intsetFind")?, set, wanted_at, wanted.len()))
}

fn listpack(memory: &mut Memory, image: &Image) -> Result<Call> {
    const HEADER: usize = 6;
    let mut entries = Vec::new();
    let (keys, numbers) = (keys(150), integers(150));
    for (number, key) in keys.iter().enumerate() {
        // A short string: its length is in the first byte's lower six bits.
        let key = &key.as_bytes()[..key.len().min(63)];
        entries.push(0x80 | key.len() as u8);
        entries.extend(key);
        entries.push(1 + key.len() as u8);
        // A number below 128, then one of 16 and one of 64 bits.
        entries.extend([number as u8 & 0x7f, 1]);
        entries.push(0xf1);
        entries.extend((numbers[number] as i16).to_le_bytes());
        entries.push(3);
        entries.push(0xf4);
        entries.extend(numbers[number].to_le_bytes());
        entries.push(9);
    }
    let mut list = Vec::new();
    list.extend((HEADER as u32 + entries.len() as u32 + 1).to_le_bytes());
    list.extend((4 * keys.len() as u16).to_le_bytes());
    list.extend(entries);
    list.push(0xff);
    let list = memory.bytes(&list);
    let (next, get) = (image.symbol("lpNext")?, image.symbol("lpGet")?);
    Ok(call!(ub_redis_listpack, next, get, list, list + HEADER as u64))
}
