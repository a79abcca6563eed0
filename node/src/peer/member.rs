//! A node of the cluster, as the others know it.

use flotilla_proto::gate::WireError;
use flotilla_proto::internal as wire;
use flotilla_types::{Locality, StoreId, StoreUuid};

/// Where a node is reached, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Where other nodes reach it: host:port.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// Where its pages are.
    pub http_address: String,
    /// Its place in the failure domains.
    pub locality: Locality,
    /// The version it runs.
    pub version: String,
}

/// A node that was taken into the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number, and that of its store.
    pub store: StoreId,
    /// Its store's directory, for ever.
    pub uuid: StoreUuid,
    /// Where it is.
    pub contact: Contact,
}

impl From<&Contact> for wire::Contact {
    fn from(contact: &Contact) -> Self {
        Self {
            peer_address: contact.peer_address.clone(),
            client_address: contact.client_address.clone(),
            http_address: contact.http_address.clone(),
            locality: contact.locality.to_string(),
            version: contact.version.clone(),
        }
    }
}

impl TryFrom<wire::Contact> for Contact {
    type Error = WireError;

    fn try_from(contact: wire::Contact) -> Result<Self, WireError> {
        let address = |text: String, what: &str| {
            let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            // Longer than any host name may be, and no room for anything but one.
            let plain = text.len() <= 300 && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/');
            match port {
                Some(port) if port > 0 && plain => Ok(text),
                _ => Err(WireError::new(format!("{what} '{}' is not host:port", text.escape_debug()))),
            }
        };
        let locality =
            if contact.locality.is_empty() { Ok(Locality::default()) } else { contact.locality.parse::<Locality>() };
        Ok(Self {
            peer_address: address(contact.peer_address, "the peer address")?,
            client_address: address(contact.client_address, "the client address")?,
            http_address: address(contact.http_address, "the http address")?,
            locality: locality.map_err(|error| WireError::new(error.to_string()))?,
            version: contact.version.chars().take(64).collect(),
        })
    }
}

impl From<&Member> for wire::Member {
    fn from(member: &Member) -> Self {
        Self {
            store_id: member.store.0,
            store_uuid: member.uuid.0.to_vec().into(),
            contact: Some((&member.contact).into()),
        }
    }
}

impl TryFrom<wire::Member> for Member {
    type Error = WireError;

    fn try_from(member: wire::Member) -> Result<Self, WireError> {
        let uuid = StoreUuid::try_from(&member.store_uuid[..]).map_err(|error| WireError::new(error.to_string()))?;
        let contact = member.contact.ok_or_else(|| WireError::new("a member's contact is missing"))?.try_into()?;
        if member.store_id == 0 {
            return Err(WireError::new("a member has no number"));
        }
        Ok(Self { store: StoreId(member.store_id), uuid, contact })
    }
}
