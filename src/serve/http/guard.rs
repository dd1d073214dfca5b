//! Who may ask.

use std::net::Ipv4Addr;

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::serve::api::ApiError;

/// Judges a request's key. Digests are compared, so that neither contents nor lengths show in the time it takes.
pub fn key(headers: &HeaderMap, wanted: Option<&str>) -> Result<(), ApiError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    // A scheme is named in any case (RFC 9110, 11.1).
    let given = match given.split_at_checked(b"Bearer ".len()) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"Bearer ") => key,
        _ => &[],
    };
    let same = Sha256::digest(given).ct_eq(&Sha256::digest(wanted.as_bytes()));
    if bool::from(same) {
        return Ok(());
    }
    let error = ApiError::new(401, "authentication_error", "wanted the header Authorization: Bearer KEY");
    Err(error.with_code("invalid_api_key"))
}

/// Refuses what names a server of this machine by another name: a page whose site has made its own name point here.
pub fn host(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| match port.parse::<u16>() {
        Ok(_) => name,
        Err(_) => host,
    });
    if name == "localhost" || name == "[::1]" || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback()) {
        return Ok(());
    }
    let wanted = "the header Host: localhost; under other names the server wants a key (TERNLM_API_KEY)";
    Err(ApiError::new(403, "permission_error", format!("wanted {wanted}")))
}

/// Refuses pages of other sites, whose scripts a browser on this machine would run: what names an origin names this server.
pub fn origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).map(|host| host.as_bytes()).unwrap_or_default();
    let origin = origin.as_bytes();
    let named = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    if named.is_some_and(|named| named == host) {
        return Ok(());
    }
    Err(ApiError::new(403, "permission_error", "a page of another site may not use this server"))
}
