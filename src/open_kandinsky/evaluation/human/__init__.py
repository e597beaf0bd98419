"""Human evaluation: two systems' pictures side by side, blind, and what the votes on them are worth."""
