"""What more than one floor of the package uses: images, Hub, model cards, code beside weights."""
