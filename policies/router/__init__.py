"""Router policies: which engine gets an arriving request; one file each."""
