"""One module for each library, so that a process imports only the one it measures.

Each has a class `Decoder(variant)` with

    pictures(path, mode) -> Iterator[normalized f32 [3, SIZE, SIZE], or None where nothing is converted]

The array belongs to the decoder, which may write the next picture into it. What a peer must be told of a
clip in advance, `prepare(path)` finds, which is not timed.
"""

SIZE = 224
