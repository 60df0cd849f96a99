//! The few rtnetlink(7) requests the network is made of.
//!
//! A [`Netlink`] speaks to the network namespace of the thread that opened it, from whatever thread it is used later.
//! Requests that find the wanted state already there succeed; nothing is cached.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::{InfoData, InfoKind, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteType},
};
use nix::errno::Errno;
use rtnetlink::{
    Error, Handle, LinkBridge, LinkBridgePort, LinkDelRequest, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};

use super::{
    naming,
    subnet::{Claim, ClaimKind},
};

/// The index of `lo` in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// The group (ip-link(8)) of interfaces about to be deleted. Whoever else is met in it has been marked as well.
const DOOMED: u32 = 0x726f_7374;

#[derive(Clone, Debug)]
pub(super) struct Netlink(Handle);

#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) is_bridge: bool,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) alias: Option<String>,
    pub(super) controller: Option<u32>,
}

/// A pair of interfaces: one end a port of the bridge, the other in a container's namespace.
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) bridge: u32,
    pub(super) address: Ipv4Addr,
    pub(super) netns: BorrowedFd<'a>,
}

impl Netlink {
    /// Must be called within a tokio runtime, which then drives the socket until the last clone is dropped.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let found = self.0.link().get().match_name(name).execute().try_next().await;
        Ok(absent_as_none(found)?.flatten().map(Link::from))
    }

    /// Every interface of the namespace.
    pub(super) async fn links(&self) -> Result<Vec<Link>, Error> {
        let request = self.0.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        request.execute().map_ok(Link::from).try_collect().await
    }

    pub(super) async fn add_bridge(&self, name: &str, address: Ipv4Addr) -> Result<(), Error> {
        let bridge = LinkBridge::new(name).address(naming::container_mac(address).to_vec()).build();
        present(self.0.link().add(bridge).execute().await)
    }

    /// Makes both ends, each where it belongs, in one request: there is no moment at which an end is elsewhere. The host's
    /// end is up; the other cannot be at this point (ENOTCONN). Unlike the other requests this one fails with EEXIST.
    pub(super) async fn add_pair(&self, pair: Pair<'_>) -> Result<(), Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(naming::CONTAINER_INTERFACE)
            .address(naming::container_mac(pair.address).to_vec())
            .append_extra_attribute(LinkAttribute::NetNsFd(pair.netns.as_raw_fd()))
            .build();
        let host = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(pair.name)
            .address(naming::host_mac(pair.address).to_vec())
            .controller(pair.bridge)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .up()
            .build();
        self.0.link().add(host).execute().await
    }

    /// Names a port of the bridge for people, and lets it have back what it sent itself (hairpin): a container that
    /// reaches itself through a published port does, where bridged packets pass the packet filter (br_netfilter).
    pub(super) async fn set_port(&self, name: &str, alias: &str) -> Result<(), Error> {
        let port = LinkMessageBuilder::<LinkBridgePort>::default()
            .name(name)
            .append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned()))
            .set_port_kind(InfoPortKind::Bridge)
            .hairpin(true);
        self.0.link().set_port(port.build()).execute().await
    }

    pub(super) async fn set_controller(&self, name: &str, bridge: u32) -> Result<(), Error> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().name(name).controller(bridge).up();
        self.0.link().set(link.build()).execute().await
    }

    pub(super) async fn set_up(&self, index: u32) -> Result<(), Error> {
        self.0.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    }

    pub(super) async fn set_loopback_up(&self) -> Result<(), Error> {
        self.set_up(LOOPBACK_INDEX).await
    }

    pub(super) async fn delete_link(&self, name: &str) -> Result<(), Error> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        absent_as_none(LinkDelRequest::new_with_message(self.0.clone(), link).execute().await).map(drop)
    }

    /// Marks an interface for [`delete_doomed`](Self::delete_doomed); one that is gone already needs no mark.
    pub(super) async fn doom(&self, name: &str) -> Result<(), Error> {
        let link = LinkMessageBuilder::<LinkUnspec>::new().name(name).link_group(DOOMED);
        absent_as_none(self.0.link().set(link.build()).execute().await).map(drop)
    }

    /// Deletes all marked interfaces at once, which takes no longer than deleting one: most of that time the kernel
    /// waits for grace periods.
    pub(super) async fn delete_doomed(&self) -> Result<(), Error> {
        let group = LinkMessageBuilder::<LinkUnspec>::new().link_group(DOOMED).build();
        absent_as_none(LinkDelRequest::new_with_message(self.0.clone(), group).execute().await).map(drop)
    }

    pub(super) async fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        present(self.0.address().add(index, IpAddr::V4(address), prefix).execute().await)
    }

    pub(super) async fn add_default_route(&self, gateway: Ipv4Addr) -> Result<(), Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        present(self.0.route().add(route).execute().await)
    }

    /// The IPv4 addresses of all interfaces.
    pub(super) async fn addresses(&self) -> Result<Vec<Claim>, Error> {
        let messages: Vec<_> = self.0.address().get().execute().try_collect().await?;
        let claims =
            messages.into_iter().filter(|message| message.header.family == AddressFamily::Inet).filter_map(|message| {
                let local = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                });
                let (prefix, interface) = (message.header.prefix_len, message.header.index);
                local.map(|address| Claim { what: ClaimKind::Address, address, prefix, interface })
            });
        Ok(claims.collect())
    }

    /// The IPv4 routes of the main table that lead to an interface.
    pub(super) async fn routes(&self) -> Result<Vec<Claim>, Error> {
        let every = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<_> = self.0.route().get(every).execute().try_collect().await?;
        let claims = messages.into_iter().filter_map(|message| {
            let header = message.header;
            if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
                return None;
            }
            let (mut address, mut interface) = (Ipv4Addr::UNSPECIFIED, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(destination)) => address = *destination,
                    RouteAttribute::Oif(index) => interface = Some(*index),
                    _ => {}
                }
            }
            let prefix = header.destination_prefix_length;
            interface.map(|interface| Claim { what: ClaimKind::Route, address, prefix, interface })
        });
        Ok(claims.collect())
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let index = message.header.index;
        let mut link = Self { index, name: String::new(), is_bridge: false, mac: None, alias: None, controller: None };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::LinkInfo(infos) => link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
                _ => {}
            }
        }
        link
    }
}

pub(super) fn errno(error: &Error) -> Option<Errno> {
    match error {
        Error::NetlinkError(message) => Some(Errno::from_raw(message.raw_code().abs())),
        _ => None,
    }
}

fn absent_as_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(errno(&error), Some(Errno::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn present(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}
