//! Long answers in several messages, so that no message grows with the cluster.
//!
//! Guarantees: no more of an answer is in memory than its caller has room for, however slowly it reads; the items of one
//! answer are of one version.

use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

/// A message ends with the item that reaches this.
pub(super) const PAGE_BYTES: usize = 256 << 10;

/// Cuts what comes into pages.
pub(super) struct Pages<I> {
    items: I,
    /// There is always one page, if only an empty one.
    begun: bool,
}

impl<I> Pages<I> {
    pub(super) fn of<T>(items: impl IntoIterator<IntoIter = I>) -> Self
    where
        I: Iterator<Item = T>,
    {
        Self { items: items.into_iter(), begun: false }
    }
}

impl<T: Message, I: Iterator<Item = T>> Iterator for Pages<I> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES
            && let Some(item) = self.items.next()
        {
            bytes += item.encoded_len();
            page.push(item);
        }
        let first = !std::mem::replace(&mut self.begun, true);
        (first || !page.is_empty()).then_some(page)
    }
}

/// Sends every page until the caller goes.
pub(super) async fn send<P>(
    pages: impl Iterator<Item = P>,
    replies: mpsc::Sender<Result<P, Status>>,
) -> Result<(), Status> {
    for page in pages {
        if replies.send(Ok(page)).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_when_it_is_full() {
        let item = |bytes: usize| "x".repeat(bytes);
        let sizes = |items: Vec<String>| Pages::of(items).map(|page| page.len()).collect::<Vec<_>>();
        assert_eq!(sizes(vec![]), [0], "nothing is said, too");
        assert_eq!(sizes(vec![item(1); 3]), [3]);
        assert_eq!(sizes(vec![item(PAGE_BYTES), item(1)]), [1, 1], "one item is never cut");
        assert_eq!(sizes(vec![item(PAGE_BYTES / 2); 4]), [2, 2]);
    }
}
