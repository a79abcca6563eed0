//! Values to bytes that compare as the values do.
//!
//! | tag | value | what follows |
//! |---|---|---|
//! | `05` | NULL | |
//! | `10` `11` | false, true | |
//! | `20`…`27` | negative integer of 8…1 bytes | value + 256ⁿ, big-endian |
//! | `28` | 0 | |
//! | `29`…`30` | positive integer of 1…8 bytes | big-endian |
//! | `34` | float | 8 bytes; sign bit flipped, or all bits if negative |
//! | `38` `3c` `3d` | decimal −∞, ∞, NaN | |
//! | `3a` | decimal 0 | |
//! | `3b` | positive decimal | exponent as an integer, two digits a byte + 2, `01` |
//! | `39` | negative decimal | the same of its magnitude, inverted |
//! | `40` | text | `00` as `00 ff`, then `00 01` |
//! | `44` | bytes | the same |
//! | `48` `4c` | date, timestamp | an integer |
//! | `50` | uuid | 16 bytes |
//!
//! A descending column has all its bytes inverted. Integers take as few bytes as they need, and few of them are zero,
//! because the physical key doubles every zero byte.

use crate::{Decimal, Direction, Value};

pub(crate) const NULL: u8 = 0x05;
pub(crate) const FALSE: u8 = 0x10;
pub(crate) const TRUE: u8 = 0x11;
pub(crate) const INT_ZERO: u8 = 0x28;
pub(crate) const FLOAT: u8 = 0x34;
pub(crate) const DECIMAL_NEGATIVE_INFINITY: u8 = 0x38;
pub(crate) const DECIMAL_NEGATIVE: u8 = 0x39;
pub(crate) const DECIMAL_ZERO: u8 = 0x3a;
pub(crate) const DECIMAL_POSITIVE: u8 = 0x3b;
pub(crate) const DECIMAL_INFINITY: u8 = 0x3c;
pub(crate) const DECIMAL_NAN: u8 = 0x3d;
pub(crate) const TEXT: u8 = 0x40;
pub(crate) const BYTES: u8 = 0x44;
pub(crate) const DATE: u8 = 0x48;
pub(crate) const TIMESTAMP: u8 = 0x4c;
pub(crate) const UUID: u8 = 0x50;

/// Ends the digits of a decimal; below every pair of digits.
pub(crate) const DIGITS_END: u8 = 0x01;
/// Added to a pair of digits.
pub(crate) const PAIR_BASE: u8 = 0x02;

/// Appends the bytes of a value.
pub fn encode(value: &Value, direction: Direction, out: &mut Vec<u8>) {
    let start = out.len();
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(false) => out.push(FALSE),
        Value::Bool(true) => out.push(TRUE),
        Value::Int(number) => encode_int(*number, out),
        Value::Float(number) => encode_float(*number, out),
        Value::Decimal(number) => encode_decimal(number, out),
        Value::Text(text) => encode_bytes(TEXT, text.as_bytes(), out),
        Value::Bytes(bytes) => encode_bytes(BYTES, bytes, out),
        Value::Date(days) => {
            out.push(DATE);
            encode_int(i64::from(*days), out);
        }
        Value::Timestamp(micros) => {
            out.push(TIMESTAMP);
            encode_int(*micros, out);
        }
        Value::Uuid(uuid) => {
            out.push(UUID);
            out.extend_from_slice(uuid);
        }
    }
    if direction == Direction::Desc {
        invert(&mut out[start..]);
    }
}

/// How many bytes an integer needs: the fewest that hold it, or for a negative one its distance from the next power of
/// 256.
pub(crate) fn int_bytes(number: i64) -> usize {
    let magnitude = if number < 0 { !number.cast_unsigned() } else { number.cast_unsigned() };
    let bytes = (64 - magnitude.leading_zeros() as usize).div_ceil(8);
    if number < 0 { bytes.max(1) } else { bytes }
}

pub(crate) fn encode_int(number: i64, out: &mut Vec<u8>) {
    let bytes = int_bytes(number);
    // At most 8.
    let distance = u8::try_from(bytes).unwrap_or(8);
    out.push(if number < 0 { INT_ZERO - distance } else { INT_ZERO + distance });
    // The low bytes of the two's complement are value + 256ⁿ.
    out.extend_from_slice(&number.to_be_bytes()[8 - bytes..]);
}

fn encode_float(number: f64, out: &mut Vec<u8>) {
    // One NaN and one zero.
    let number = if number.is_nan() { f64::NAN.abs() } else { number + 0.0 };
    let bits = number.to_bits();
    let ordered = if bits >> 63 == 1 { !bits } else { bits ^ (1 << 63) };
    out.push(FLOAT);
    out.extend_from_slice(&ordered.to_be_bytes());
}

fn encode_decimal(number: &Decimal, out: &mut Vec<u8>) {
    let (negative, digits, exponent) = match number {
        Decimal::NegativeInfinity => return out.push(DECIMAL_NEGATIVE_INFINITY),
        Decimal::Infinity => return out.push(DECIMAL_INFINITY),
        Decimal::NaN => return out.push(DECIMAL_NAN),
        Decimal::Finite { digits, .. } if digits.is_empty() => return out.push(DECIMAL_ZERO),
        Decimal::Finite { negative, digits, exponent } => (*negative, digits, *exponent),
    };
    out.push(if negative { DECIMAL_NEGATIVE } else { DECIMAL_POSITIVE });
    let start = out.len();
    encode_int(i64::from(exponent), out);
    out.extend(digits.chunks(2).map(|pair| PAIR_BASE + 10 * pair[0] + pair.get(1).copied().unwrap_or(0)));
    out.push(DIGITS_END);
    if negative {
        invert(&mut out[start..]);
    }
}

fn encode_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() + 3);
    out.push(tag);
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0x00, 0x01]);
}

fn invert(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
}
