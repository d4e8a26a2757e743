"""One job: trained, evaluated, written down."""
