"""Models on tensors: scVI, scANVI, their likelihoods, layers and surgery. No AnnData here."""
