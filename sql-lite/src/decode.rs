//! Bytes back to values. Strict: bytes that `encode` would not have written are refused, so that one value has one key.

use thiserror::Error;

use crate::encode::{
    BYTES, DATE, DECIMAL_INFINITY, DECIMAL_NAN, DECIMAL_NEGATIVE, DECIMAL_NEGATIVE_INFINITY, DECIMAL_POSITIVE,
    DECIMAL_ZERO, DIGITS_END, FALSE, FLOAT, INT_ZERO, NULL, PAIR_BASE, TEXT, TIMESTAMP, TRUE, UUID, int_bytes,
};
use crate::{Decimal, Direction, Value};

/// Bytes that are no key of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// It ends in the middle.
    #[error("the key ends inside {0}")]
    Short(&'static str),
    /// A tag that no value has.
    #[error("{0:#04x} begins no value")]
    Tag(u8),
    /// Something that is never written.
    #[error("the key holds {0}")]
    Malformed(&'static str),
    /// Bytes behind its end.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// Reads values from the bytes of a key, one after the other.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    /// 0, or `ff` while the bytes are to be inverted.
    mask: u8,
}

impl<'a> Decoder<'a> {
    /// Begins at the first of these bytes.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, mask: 0 }
    }

    /// What was not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next value.
    ///
    /// # Errors
    /// The bytes are none that `encode` writes.
    pub fn value(&mut self, direction: Direction) -> Result<Value, KeyError> {
        self.mask = if direction == Direction::Desc { 0xff } else { 0 };
        let value = self.tagged();
        self.mask = 0;
        value
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// `Trailing` if something is.
    pub const fn finish(self) -> Result<(), KeyError> {
        if self.rest.is_empty() { Ok(()) } else { Err(KeyError::Trailing(self.rest.len())) }
    }

    /// An integer.
    pub(crate) fn int(&mut self) -> Result<i64, KeyError> {
        let tag = self.byte("an integer")?;
        if !(INT_ZERO - 8..=INT_ZERO + 8).contains(&tag) {
            return Err(KeyError::Tag(tag));
        }
        self.int_of(tag)
    }

    fn tagged(&mut self) -> Result<Value, KeyError> {
        match self.byte("a value")? {
            NULL => Ok(Value::Null),
            FALSE => Ok(Value::Bool(false)),
            TRUE => Ok(Value::Bool(true)),
            tag if (INT_ZERO - 8..=INT_ZERO + 8).contains(&tag) => self.int_of(tag).map(Value::Int),
            FLOAT => self.float().map(Value::Float),
            tag @ DECIMAL_NEGATIVE_INFINITY..=DECIMAL_NAN => self.decimal(tag).map(Value::Decimal),
            TEXT => {
                let text = String::from_utf8(self.escaped("a text")?);
                text.map(Value::Text).map_err(|_| KeyError::Malformed("a text that is not UTF-8"))
            }
            BYTES => self.escaped("bytes").map(Value::Bytes),
            DATE => {
                let days = i32::try_from(self.int()?).map_err(|_| KeyError::Malformed("a date out of bounds"))?;
                Ok(Value::Date(days))
            }
            TIMESTAMP => self.int().map(Value::Timestamp),
            UUID => self.array("a uuid").map(Value::Uuid),
            tag => Err(KeyError::Tag(tag)),
        }
    }

    fn int_of(&mut self, tag: u8) -> Result<i64, KeyError> {
        let negative = tag < INT_ZERO;
        let count = usize::from(tag.abs_diff(INT_ZERO));
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        for byte in &mut wide[8 - count..] {
            *byte = self.byte("an integer")?;
        }
        let number = i64::from_be_bytes(wide);
        if (number < 0) != negative || int_bytes(number) != count {
            return Err(KeyError::Malformed("an integer in a form that is never written"));
        }
        Ok(number)
    }

    fn float(&mut self) -> Result<f64, KeyError> {
        let ordered = u64::from_be_bytes(self.array("a float")?);
        let bits = if ordered >> 63 == 1 { ordered ^ (1 << 63) } else { !ordered };
        let number = f64::from_bits(bits);
        if bits == 1 << 63 || (number.is_nan() && bits != f64::NAN.abs().to_bits()) {
            return Err(KeyError::Malformed("a float in a form that is never written"));
        }
        Ok(number)
    }

    fn decimal(&mut self, tag: u8) -> Result<Decimal, KeyError> {
        match tag {
            DECIMAL_NEGATIVE_INFINITY => Ok(Decimal::NegativeInfinity),
            DECIMAL_INFINITY => Ok(Decimal::Infinity),
            DECIMAL_ZERO => Ok(Decimal::from(0)),
            DECIMAL_POSITIVE => self.finite(false),
            DECIMAL_NEGATIVE => {
                self.mask = !self.mask;
                let number = self.finite(true);
                self.mask = !self.mask;
                number
            }
            _ => Ok(Decimal::NaN),
        }
    }

    fn finite(&mut self, negative: bool) -> Result<Decimal, KeyError> {
        let malformed = KeyError::Malformed("a decimal in a form that is never written");
        let exponent = self.int()?;
        let mut digits = Vec::new();
        loop {
            match self.byte("a decimal")? {
                DIGITS_END => break,
                pair if (PAIR_BASE..PAIR_BASE + 100).contains(&pair) => {
                    digits.extend([(pair - PAIR_BASE) / 10, (pair - PAIR_BASE) % 10]);
                }
                _ => return Err(malformed),
            }
        }
        let last_pair_is_zero = digits.ends_with(&[0, 0]);
        if digits.first().is_none_or(|first| *first == 0) || last_pair_is_zero {
            return Err(malformed);
        }
        Decimal::new(negative, &digits, exponent).ok_or(malformed)
    }

    /// Bytes up to their terminator.
    fn escaped(&mut self, what: &'static str) -> Result<Vec<u8>, KeyError> {
        let mut bytes = Vec::new();
        loop {
            match self.byte(what)? {
                0x00 => match self.byte(what)? {
                    0x01 => return Ok(bytes),
                    0xff => bytes.push(0),
                    _ => return Err(KeyError::Malformed("an escape that is none")),
                },
                byte => bytes.push(byte),
            }
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], KeyError> {
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte(what)?;
        }
        Ok(array)
    }

    fn byte(&mut self, inside: &'static str) -> Result<u8, KeyError> {
        let (first, rest) = self.rest.split_first().ok_or(KeyError::Short(inside))?;
        self.rest = rest;
        Ok(first ^ self.mask)
    }
}
