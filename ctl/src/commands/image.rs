//! `image load|pull|ls|rm`.

use std::path::Path;

use futures::{Stream, StreamExt};
use roster_proto::{report::ImageInfo, wire};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::{all, print, write_out};
use crate::{
    cli::Image,
    client::Client,
    error::{Ending, Error},
    render::{list, views::ImageView},
};

/// Well below gRPC's 4 MiB message limit, large enough not to matter.
const CHUNK: usize = 256 << 10;

pub(super) async fn run(args: Image, client: &mut Client) -> Result<Ending, Error> {
    match args {
        Image::Load { file, nodes } => {
            let archive = open(&file).await?;
            let (parts, failure) = parts(archive, nodes.nodes);
            let answer = client.load_image(parts).await;
            // Why the archive could not be read matters more than what the controller made of its end.
            if let Ok(error) = failure.await {
                return Err(Error::io(format!("cannot read {}", file.display()), error));
            }
            report("loaded", all(answer?.into_inner().images)?)?;
        }
        Image::Pull { reference, nodes } => {
            let request = wire::PullImageRequest { reference, nodes: nodes.nodes };
            report("pulled", all(client.pull_image(request).await?.into_inner().images)?)?;
        }
        Image::Ls { nodes, output } => {
            let request = wire::ListImagesRequest { nodes: nodes.nodes };
            let images: Vec<ImageInfo> = all(client.list_images(request).await?.into_inner().images)?;
            print(
                output.output,
                || images.iter().map(ImageView::from).collect::<Vec<_>>(),
                |wide| list::images(&images, wide),
            )?;
        }
        Image::Rm { reference, nodes } => {
            let request = wire::RemoveImageRequest { reference: reference.clone(), nodes: nodes.nodes };
            for node in client.remove_image(request).await?.into_inner().nodes {
                write_out(&format!("removed {reference} from {node}\n"))?;
            }
        }
    }
    Ok(Ending::Done)
}

fn report(done: &str, images: Vec<ImageInfo>) -> Result<(), Error> {
    for image in images {
        let name = if image.names.is_empty() { image.id.clone() } else { image.names.join(", ") };
        write_out(&format!("{done} {name} on {}\n", image.node))?;
    }
    Ok(())
}

async fn open(file: &Path) -> Result<Box<dyn AsyncRead + Send + Unpin>, Error> {
    if file == Path::new("-") {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let archive = tokio::fs::File::open(file)
        .await
        .map_err(|error| Error::io(format!("cannot open the archive {}", file.display()), error))?;
    Ok(Box::new(archive))
}

type Failure = tokio::sync::oneshot::Receiver<std::io::Error>;

/// The header, then the archive. A read error ends the stream early and comes out at the side.
fn parts(
    archive: Box<dyn AsyncRead + Send + Unpin>,
    nodes: Vec<String>,
) -> (impl Stream<Item = wire::LoadImageRequest> + Send + 'static, Failure) {
    use wire::load_image_request::Part;
    let (tell, failure) = tokio::sync::oneshot::channel();
    let mut tell = Some(tell);
    let message = |part| wire::LoadImageRequest { part: Some(part) };
    let header = message(Part::Header(wire::LoadImageHeader { nodes }));
    let data = ReaderStream::with_capacity(archive, CHUNK)
        .map(move |chunk| match chunk {
            Ok(data) => Some(message(Part::Data(data))),
            Err(error) => {
                if let Some(tell) = tell.take() {
                    // Nobody listens any more only when the call has failed already.
                    let _ = tell.send(error);
                }
                None
            }
        })
        .take_while(|part| std::future::ready(part.is_some()))
        .filter_map(std::future::ready);
    (futures::stream::once(std::future::ready(header)).chain(data), failure)
}
