//! Who is who in a cluster: certificates, join tokens, and TLS made of them.
