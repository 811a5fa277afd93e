"""One module for each library, so that a process imports only the one it measures.

Each has a class `Decoder(variant)` with

    prepare(path)                  where a peer must know of a clip in advance what the job does not tell it;
                                   it is called first and is not timed, in the peer's favour
    pictures(path, mode) -> Iterator[normalized f32 [3, SIZE, SIZE], or None where nothing is converted]

The array belongs to the decoder, which may write the next picture into it.
"""

SIZE = 224
