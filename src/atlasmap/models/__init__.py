"""Models on tensors: scVI, scANVI, totalVI, their likelihoods, layers, surgery. No AnnData here."""
