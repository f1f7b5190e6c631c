//! A piece of the body of a response, on its way to the kernel.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::guard::RequestGuard;
use super::output::ResponseOutput;

/// A piece of the body of a response. hyper drops it once the kernel has all of it, or when the client
/// has gone.
pub(super) struct Piece<D: Buf> {
    data: PieceData<D>,
    /// The output of its response, if that matters.
    output: Option<Arc<ResponseOutput>>,
    /// Its request, if it is the last piece: it is in progress until the kernel has its response.
    request: Option<RequestGuard>,
}

enum PieceData<D> {
    App(D),
    Class(Bytes),
}

impl<D: Buf> Piece<D> {
    /// Makes a piece of the app's body, of which `length` bytes are sent. `request` is the guard of its
    /// request, if it is the last.
    pub(super) fn of_app(
        data: D,
        length: usize,
        output: Option<Arc<ResponseOutput>>,
        request: Option<RequestGuard>,
    ) -> Self {
        if let Some(output) = &output {
            output.on_piece(length);
        }
        Self { data: PieceData::App(data), output, request }
    }

    /// Makes the body of a response of the class itself.
    pub(super) fn of_class(
        text: Bytes,
        output: Option<Arc<ResponseOutput>>,
        request: Option<RequestGuard>,
    ) -> Self {
        if let Some(output) = &output {
            output.on_piece(text.len());
        }
        Self { data: PieceData::Class(text), output, request }
    }
}

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        match &self.data {
            PieceData::App(data) => data.remaining(),
            PieceData::Class(text) => text.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.data {
            PieceData::App(data) => data.chunk(),
            PieceData::Class(text) => text.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match &self.data {
            PieceData::App(data) => data.chunks_vectored(slices),
            PieceData::Class(text) => text.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.data {
            PieceData::App(data) => data.advance(count),
            PieceData::Class(text) => text.advance(count),
        }
        if let Some(output) = &self.output {
            output.on_taken(count);
        }
    }
}

impl<D: Buf> Drop for Piece<D> {
    fn drop(&mut self) {
        self.request = None;
        if let Some(output) = &self.output {
            output.on_piece_end();
        }
    }
}
