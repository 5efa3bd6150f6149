"""Search over tokens in four roles: inference, filters, decoder, ranker. It knows no transport."""
