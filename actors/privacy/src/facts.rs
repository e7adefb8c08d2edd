//! What the configuration says about the handling of data: the ground of the statement and of each report.

use serde::{Deserialize, Serialize};

/// What this service does with data, derived from the configuration in effect. What the configuration does
/// not say is missing here too, and is named as missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The served domains, and where they can be reached.
    pub services: Vec<Place>,
    /// Who is responsible: name and address.
    pub controller: Option<String>,
    /// Whom to ask.
    pub contact: Vec<String>,
    /// The authority to complain to.
    pub authority: Option<String>,
    /// Where the machines are.
    pub locations: Vec<String>,
    /// What is seen, stored and logged, why, and for how long.
    pub holdings: Vec<Holding>,
    /// What is never stored, logged or passed on.
    pub never: Vec<String>,
    /// Who gets what.
    pub recipients: Vec<Recipient>,
    /// What people may do, and how.
    pub rights: Vec<String>,
    /// What the configuration does not say though a statement needs it, as `key: what it is`.
    pub missing: Vec<String>,
}

/// A served domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The domain.
    pub domain: String,
    /// IP families that it takes streams on, as `IPv4` and `IPv6`; none for a component of a server, which
    /// is reached where that server is.
    pub families: Vec<String>,
}

/// One kind of data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// When it comes about.
    pub occasion: String,
    /// What it is.
    pub data: String,
    /// What for.
    pub purpose: String,
    /// For how long.
    pub kept: String,
}

/// Somebody who gets data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// Name and country.
    pub name: String,
    /// What they get.
    pub data: String,
    /// What for.
    pub purpose: String,
}
