//! Decimal numbers of any precision, as far as keys need them: read, written and ordered, not reckoned with.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A `numeric`. Equal numbers have one form: 1.0 is 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decimal {
    /// Below all.
    NegativeInfinity,
    /// ±0.d₁d₂…dₙ × 10^exponent.
    Finite {
        /// Whether it is below zero.
        negative: bool,
        /// d₁ to dₙ, each 0 to 9. Invariant: neither the first nor the last is 0; none at all for zero, which has
        /// exponent 0 and is not negative.
        digits: Vec<u8>,
        /// Where the point is. Invariant: at most `EXPONENT_MAX` away from 0.
        exponent: i32,
    },
    /// Above all but NaN.
    Infinity,
    /// Above all, and equal to itself, as in PostgreSQL.
    NaN,
}

/// A text that is no decimal number, or one out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not a decimal number within bounds")]
pub struct DecimalError(String);

impl Decimal {
    /// The largest exponent, either way: far more than PostgreSQL's 131,072 digits.
    pub const EXPONENT_MAX: i32 = 1 << 20;

    /// The number in its one form; `None` if its exponent is out of bounds or a digit is none.
    #[must_use]
    pub fn new(negative: bool, digits: &[u8], exponent: i64) -> Option<Self> {
        if digits.iter().any(|digit| *digit > 9) {
            return None;
        }
        let leading = digits.iter().take_while(|digit| **digit == 0).count();
        let trailing = digits.iter().rev().take_while(|digit| **digit == 0).count();
        if leading == digits.len() {
            return Some(Self::Finite { negative: false, digits: Vec::new(), exponent: 0 });
        }
        let exponent = exponent.checked_sub(i64::try_from(leading).ok()?)?;
        let exponent = i32::try_from(exponent).ok().filter(|exponent| exponent.abs() <= Self::EXPONENT_MAX)?;
        Some(Self::Finite { negative, digits: digits[leading..digits.len() - trailing].to_vec(), exponent })
    }

    const fn rank(&self) -> u8 {
        match self {
            Self::NegativeInfinity => 0,
            Self::Finite { .. } => 1,
            Self::Infinity => 2,
            Self::NaN => 3,
        }
    }
}

impl From<i64> for Decimal {
    fn from(number: i64) -> Self {
        let digits: Vec<u8> = number.unsigned_abs().to_string().bytes().map(|digit| digit - b'0').collect();
        let exponent = digits.len() as i64;
        // At most 19 digits: always within bounds.
        Self::new(number < 0, &digits, exponent).unwrap_or(Self::NaN)
    }
}

impl FromStr for Decimal {
    type Err = DecimalError;

    /// `-12.5`, `1e-7`, `NaN`, `Infinity`, `-Infinity`.
    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let refused = || DecimalError(text.to_owned());
        match text {
            "NaN" => return Ok(Self::NaN),
            "Infinity" => return Ok(Self::Infinity),
            "-Infinity" => return Ok(Self::NegativeInfinity),
            _ => {}
        }
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
        let exponent: i64 = exponent.parse().map_err(|_| refused())?;
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits: Vec<u8> = [whole, fraction].concat().bytes().map(|digit| digit.wrapping_sub(b'0')).collect();
        if digits.is_empty() {
            return Err(refused());
        }
        let exponent = exponent.checked_add(whole.len() as i64).ok_or_else(refused)?;
        Self::new(negative, &digits, exponent).ok_or_else(refused)
    }
}

impl fmt::Display for Decimal {
    /// Plain where that is short, else with an exponent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (negative, digits, exponent) = match self {
            Self::NegativeInfinity => return f.write_str("-Infinity"),
            Self::Infinity => return f.write_str("Infinity"),
            Self::NaN => return f.write_str("NaN"),
            Self::Finite { negative, digits, exponent } => (*negative, digits, *exponent),
        };
        if digits.is_empty() {
            return f.write_str("0");
        }
        let sign = if negative { "-" } else { "" };
        let text: String = digits.iter().map(|digit| (b'0' + digit) as char).collect();
        match usize::try_from(exponent) {
            Ok(point) if point <= 40 && point >= text.len() => {
                write!(f, "{sign}{text}{}", "0".repeat(point - text.len()))
            }
            Ok(point) if point <= 40 && point > 0 => write!(f, "{sign}{}.{}", &text[..point], &text[point..]),
            _ if (-8..=0).contains(&exponent) => {
                write!(f, "{sign}0.{}{text}", "0".repeat(exponent.unsigned_abs() as usize))
            }
            _ if text.len() == 1 => write!(f, "{sign}{text}e{}", exponent - 1),
            _ => write!(f, "{sign}{}.{}e{}", &text[..1], &text[1..], exponent - 1),
        }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let (Self::Finite { negative, digits, exponent }, Self::Finite { negative: n, digits: d, exponent: e }) =
            (self, other)
        else {
            return self.rank().cmp(&other.rank());
        };
        let sign = |negative: bool, digits: &[u8]| match (digits.is_empty(), negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let magnitude = exponent.cmp(e).then_with(|| digits.cmp(d));
        let magnitude = if *negative { magnitude.reverse() } else { magnitude };
        sign(*negative, digits).cmp(&sign(*n, d)).then(magnitude)
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn equal_numbers_have_one_form() {
        for equal in ["12.5", "12.50", "0012.5", "1.25e1", "125E-1", "+12.5".trim_start_matches('+')] {
            assert_eq!(decimal(equal), decimal("12.5"), "{equal}");
            assert_eq!(decimal(equal).to_string(), "12.5");
        }
        assert_eq!(decimal("-0.00"), decimal("0"));
        assert_eq!(Decimal::from(-1_500), decimal("-1.5e3"));
        for text in ["0.001", "1e100", "-1.5e-30", "120000", "NaN", "-Infinity"] {
            assert_eq!(decimal(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in ["", "-", ".", "1.2.3", "1e", "x", "--1", "1e99999999", "1e9223372036854775807", "infinity "] {
            assert!(bad.parse::<Decimal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_ordered_as_numbers() {
        let sorted = [
            "-Infinity",
            "-1e100",
            "-20",
            "-12.5",
            "-12",
            "-0.1",
            "-0.01",
            "0",
            "0.01",
            "0.1",
            "9",
            "10",
            "12.45",
            "12.5",
            "1e100",
            "Infinity",
            "NaN",
        ];
        assert!(sorted.windows(2).all(|pair| decimal(pair[0]) < decimal(pair[1])));
    }
}
