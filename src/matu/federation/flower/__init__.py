"""The same rounds over Flower: nodes carry opaque bytes, and nothing here knows what they say."""
