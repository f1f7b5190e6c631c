//! A piece of the body of a response, on its way to the kernel.

use std::io::IoSlice;

use bytes::Buf;

use super::guard::{FollowedPiece, RequestGuard};

/// A piece of the body of a response. hyper drops it once the kernel has all of it, or when the client
/// has gone.
pub(super) struct Piece<D> {
    data: PieceData<D>,
    owner: Owner,
}

enum PieceData<D> {
    App(D),
    Class(&'static [u8]),
}

/// What a piece keeps until it is dropped.
enum Owner {
    None,
    /// The output of its response, if that matters.
    Output(FollowedPiece),
    /// Its request, if it is the last piece: it is in progress until the kernel has its response.
    Request(RequestGuard),
}

impl<D> Piece<D> {
    /// Makes a piece of the app's body which is no part of the output, such as trailers.
    pub(super) fn apart(data: D) -> Self {
        Self { data: PieceData::App(data), owner: Owner::None }
    }

    /// Makes a piece of the app's body, of which `length` bytes are sent.
    pub(super) fn new(data: D, length: usize, request: &mut RequestGuard) -> Self {
        let owner = request.add_piece(length).map_or(Owner::None, Owner::Output);
        Self { data: PieceData::App(data), owner }
    }

    /// Makes the last piece of the app's body, of which `length` bytes are sent.
    pub(super) fn last(data: D, length: usize, request: RequestGuard) -> Self {
        Self::with_request(PieceData::App(data), length, request)
    }

    /// Makes the body of a response of the class itself.
    pub(super) fn of_class(text: &'static [u8], request: RequestGuard) -> Self {
        let length = text.len();
        Self::with_request(PieceData::Class(text), length, request)
    }

    fn with_request(data: PieceData<D>, length: usize, mut request: RequestGuard) -> Self {
        request.set_last_piece(length);
        Self { data, owner: Owner::Request(request) }
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
        match &self.owner {
            Owner::None => (),
            Owner::Output(output) => output.on_taken(count),
            Owner::Request(request) => request.on_taken(count),
        }
    }
}
