//! Tokens, people and authorities. Every edit needs a cluster that was initialised.

use std::sync::Arc;

use roster_proto::{id::ClusterId, report::Subject, time::Timestamp};

use super::Edit;
use crate::state::{
    AuthorityRecord, Grant, Holder, MAX_AUTHORITIES, MAX_REVOKED, MAX_TOKENS, MAX_USERS, Secret, Security, TokenRecord,
    TokenRole, UserRecord, UserRole, command::Refusal,
};

impl Edit<'_> {
    pub(super) fn init_cluster(&mut self, cluster: &ClusterId, authority: &AuthorityRecord) -> Result<(), Refusal> {
        if let Some(present) = &self.state.security.cluster {
            return Err(Refusal::AlreadyInitialised(present.clone()));
        }
        refuse_bad_authorities(std::slice::from_ref(authority))?;
        let security = self.edit_security();
        security.cluster = Some(cluster.clone());
        security.authorities = vec![authority.clone()];
        self.tell_cluster(|| format!("cluster {cluster} is founded"));
        Ok(())
    }

    pub(super) fn set_authorities(&mut self, authorities: &[AuthorityRecord]) -> Result<(), Refusal> {
        self.refuse_uninitialised()?;
        refuse_bad_authorities(authorities)?;
        if self.state.security.authorities == authorities {
            return Ok(());
        }
        let signs = self.state.security.signing().map(|authority| authority.certificate.clone());
        let security = self.edit_security();
        security.authorities = authorities.to_vec();
        security.forget_old_revocations();
        let another = authorities.first().map(|authority| &authority.certificate) != signs.as_ref();
        let count = authorities.len();
        self.tell_cluster(|| match (another, count) {
            (true, _) => format!("another authority signs from now on, {count} are trusted"),
            (false, 1) => "only the authority that signs is trusted from now on".to_owned(),
            (false, _) => format!("{count} authorities are trusted from now on"),
        });
        Ok(())
    }

    pub(super) fn put_token(
        &mut self,
        id: &str,
        role: TokenRole,
        digest: &Secret,
        expires: Timestamp,
        uses: u32,
    ) -> Result<(), Refusal> {
        self.refuse_uninitialised()?;
        let at = self.at;
        let mut security = Security::clone(&self.state.security);
        security.forget_old_tokens(at);
        if security.tokens.contains_key(id) {
            return Err(Refusal::TokenExists(id.to_owned()));
        }
        if security.tokens.len() >= MAX_TOKENS {
            let text = format!("{MAX_TOKENS} join tokens are allowed: revoke some first, `rctl token ls` lists them");
            return Err(Refusal::Limit(text));
        }
        let token = TokenRecord { role, digest: digest.clone(), created: at, expires, uses_left: uses };
        security.tokens.insert(id.to_owned(), token);
        *self.edit_security() = security;
        self.tell_cluster(|| format!("join token {id} is made for role {role} until {expires} (uses: {uses})"));
        Ok(())
    }

    pub(super) fn revoke_token(&mut self, id: &str) -> Result<(), Refusal> {
        if self.edit_known(|security| security.tokens.contains_key(id)).and_then(|s| s.tokens.remove(id)).is_none() {
            return Err(Refusal::NoSuchToken(id.to_owned()));
        }
        self.tell_cluster(|| format!("join token {id} is revoked"));
        Ok(())
    }

    /// A wrong secret and an unknown token are told alike: nobody learns which ids there are. The same request again is
    /// the same admission and uses up nothing; another one for a name that somebody holds is refused.
    pub(super) fn use_token(&mut self, id: &str, digest: &Secret, name: &str, grant: &Grant) -> Result<(), Refusal> {
        let token = self.state.security.tokens.get(id).filter(|token| token.digest == *digest).cloned();
        let Some(mut token) = token else { return Err(Refusal::UnknownToken) };
        if token.expires <= self.at {
            return Err(Refusal::TokenExpired { id: id.to_owned(), at: token.expires });
        }
        let holder = token.role.holder(name);
        match self.state.security.grants.get(&holder).filter(|present| present.expires > self.at) {
            Some(present) if present.request == grant.request => {
                self.put_grant(&holder, grant);
                return Ok(());
            }
            Some(_) => return Err(Refusal::NameTaken(holder)),
            None => {}
        }
        token.uses_left = token.uses_left.checked_sub(1).ok_or_else(|| Refusal::TokenUsedUp(id.to_owned()))?;
        let (role, left) = (token.role, token.uses_left);
        self.edit_security().tokens.insert(id.to_owned(), token);
        self.put_grant(&holder, grant);
        self.tell_cluster(|| format!("{role} {name} is admitted by join token {id} (uses left: {left})"));
        Ok(())
    }

    pub(super) fn renew_grant(&mut self, holder: &Holder, grant: &Grant) -> Result<(), Refusal> {
        self.refuse_uninitialised()?;
        if self.state.security.is_removed(holder) {
            return Err(Refusal::Removed(holder.clone()));
        }
        self.put_grant(holder, grant);
        if let Holder::User(name) = holder
            && let Some(user) = self.edit_security().users.get_mut(name)
        {
            user.expires = grant.expires;
        }
        Ok(())
    }

    fn put_grant(&mut self, holder: &Holder, grant: &Grant) {
        let at = self.at;
        let security = self.edit_security();
        security.forget_old_grants(at);
        security.grants.insert(holder.clone(), grant.clone());
    }

    pub(super) fn put_user(&mut self, name: &str, role: UserRole, grant: &Grant) -> Result<(), Refusal> {
        self.refuse_uninitialised()?;
        let before = self.state.security.users.get(name).cloned();
        if before.is_none() && self.state.security.users.len() >= MAX_USERS {
            return Err(Refusal::Limit(format!("{MAX_USERS} users are allowed: remove some first")));
        }
        let created = before.as_ref().map_or(self.at, |before| before.created);
        let user = UserRecord { role, created, expires: grant.expires };
        self.put_grant(&Holder::User(name.to_owned()), grant);
        self.edit_security().users.insert(name.to_owned(), user);
        self.tell_cluster(|| match before {
            None => format!("user {name} is added as {role}"),
            Some(before) if before.role != role => format!("user {name} is {role} instead of {} now", before.role),
            Some(_) => format!("user {name} has a new certificate"),
        });
        Ok(())
    }

    pub(super) fn remove_user(&mut self, name: &str) -> Result<(), Refusal> {
        if !self.state.security.users.contains_key(name) {
            return Err(Refusal::NoSuchUser(name.to_owned()));
        }
        self.revoke(Holder::User(name.to_owned()))?;
        self.edit_security().users.remove(name);
        self.tell_cluster(|| format!("user {name} is removed"));
        Ok(())
    }

    /// The holder's certificates are refused that were issued until now.
    pub(super) fn revoke(&mut self, holder: Holder) -> Result<(), Refusal> {
        let at = self.at;
        if self.state.security.cluster.is_none() {
            return Ok(());
        }
        let known = self.state.security.revoked.contains_key(&holder);
        if !known && self.state.security.revoked.len() >= MAX_REVOKED {
            let text = format!(
                "{MAX_REVOKED} removed members are remembered, and {holder} would be one more: `rctl cluster \
                 rotate-ca` lets the cluster forget them"
            );
            return Err(Refusal::Limit(text));
        }
        let security = self.edit_security();
        // Another leader, with a clock ahead of this one's, may have issued it.
        let newest = security.grants.remove(&holder).map(|grant| grant.issued);
        security.revoked.insert(holder, at.max(newest.unwrap_or(at)));
        Ok(())
    }

    fn refuse_uninitialised(&self) -> Result<(), Refusal> {
        self.state.security.cluster.as_ref().map(|_| ()).ok_or(Refusal::NotInitialised)
    }

    fn edit_security(&mut self) -> &mut Security {
        self.changed = true;
        Arc::make_mut(&mut self.state.security)
    }

    fn edit_known(&mut self, known: impl FnOnce(&Security) -> bool) -> Option<&mut Security> {
        known(&self.state.security).then(|| self.edit_security())
    }

    pub(super) fn tell_cluster(&mut self, message: impl FnOnce() -> String) {
        self.tell(Subject::Cluster, message, None);
    }
}

fn refuse_bad_authorities(authorities: &[AuthorityRecord]) -> Result<(), Refusal> {
    if authorities.len() > MAX_AUTHORITIES {
        let text = format!("{MAX_AUTHORITIES} authorities are allowed: wait until the last rotation is complete");
        return Err(Refusal::Limit(text));
    }
    match authorities.first() {
        Some(first) if first.key.is_some() => Ok(()),
        _ => Err(Refusal::NoAuthority),
    }
}
