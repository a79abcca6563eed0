//! Where a node stands: `region=eu,dc=eu-1,rack=7`, largest failure domain first.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// One level of a locality.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier {
    /// The kind of failure domain, as `dc`.
    pub name: String,
    /// Which one, as `eu-1`.
    pub value: String,
}

/// A node's place in the hierarchy of failure domains, largest first. May be empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Locality {
    /// The levels, largest domain first.
    pub tiers: Vec<Tier>,
}

/// A text that is no locality.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is not a locality: write comma-separated name=value pairs, largest domain first, such as region=eu,dc=eu-1,rack=7"
)]
pub struct LocalityError(String);

impl FromStr for Locality {
    type Err = LocalityError;

    fn from_str(text: &str) -> Result<Self, LocalityError> {
        let refused = || LocalityError(text.to_owned());
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut tiers: Vec<Tier> = Vec::new();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(refused)?;
            let fresh = tiers.iter().all(|tier| tier.name != name);
            if name.is_empty() || value.is_empty() || !fresh {
                return Err(refused());
            }
            tiers.push(Tier { name: name.to_owned(), value: value.to_owned() });
        }
        Ok(Self { tiers })
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, tier) in self.tiers.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}={}", tier.name, tier.value)?;
        }
        Ok(())
    }
}

impl Locality {
    /// How little the two share: 0 if they stand in the same smallest domain, more the larger the domain in which they
    /// differ. Two nodes that differ in the first of three tiers have diversity 3.
    #[must_use]
    pub fn diversity(&self, other: &Self) -> usize {
        let depth = self.tiers.len().max(other.tiers.len());
        let shared = self.tiers.iter().zip(&other.tiers).take_while(|(a, b)| a == b).count();
        depth - shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locality_prints_as_it_was_written() {
        let text = "region=eu,dc=eu-1,rack=7";
        assert_eq!(text.parse::<Locality>().unwrap().to_string(), text);
        for wrong in ["eu", "region=", "=eu", "dc=a,dc=b"] {
            assert!(wrong.parse::<Locality>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_larger_the_domain_that_differs_the_larger_the_diversity() {
        let at = |text: &str| text.parse::<Locality>().unwrap();
        let here = at("region=eu,dc=1,rack=1");
        assert_eq!(here.diversity(&here), 0);
        assert_eq!(here.diversity(&at("region=eu,dc=1,rack=2")), 1);
        assert_eq!(here.diversity(&at("region=eu,dc=2,rack=1")), 2);
        assert_eq!(here.diversity(&at("region=us,dc=1,rack=1")), 3);
    }
}
