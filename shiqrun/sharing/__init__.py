"""What leaves a run: exported models, their cards with citations, uploads to the Hugging Face Hub."""
